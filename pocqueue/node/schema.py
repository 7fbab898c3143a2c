"""Bodies of the small node's routes, of legacy and later chains: docs/wire.md.

Bounds are those of a round (`poc/search.py`); limits of the model are checked when the search begins.
Unknown fields are ignored: clients of several generations send more than this one needs.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pocqueue.errors import InvalidRound, NodeStateError
from pocqueue.node.messages import OutboxStatus
from pocqueue.node.round import NodeRound
from pocqueue.poc.distance.scheme import SEARCH_EXAMPLE
from pocqueue.poc.fields import HttpUrl, Text
from pocqueue.poc.nonces import check_node
from pocqueue.poc.scheme import WithProof
from pocqueue.poc.search import NOT_SET, MaybeNodeCount, MaybeNodeId, SearchBody
from pocqueue.web.errors import error_answers
from pocqueue.web.schema import example

#: What legacy nodes take if neither the body nor its params say.
DEFAULT_SEQ_LEN = 16

#: Up to more than any model has positions for.
MaybeSeqLen = Annotated[int | None, Field(ge=1, le=1 << 24)]
_Count = Annotated[int | None, Field(ge=1)]
_TOKEN = re.compile(r"[!-~]{0,1024}")


class Params(BaseModel):
    """The model that the proof is for: by name, or by the dimensions that older chains send."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Text | None = Field(default=None, description="Name of the model, as it is deployed.")
    seq_len: MaybeSeqLen = Field(
        default=None,
        description=f"Positions of one nonce's input; {DEFAULT_SEQ_LEN} if nothing says.",
    )
    dim: _Count = Field(default=None, description="Width of an embedding.")
    n_layers: _Count = Field(default=None, description="Transformer blocks.")
    n_heads: _Count = Field(default=None, description="Attention heads of a block.")
    n_kv_heads: _Count = Field(
        default=None, description="Of these, those with keys and values of their own."
    )
    vocab_size: _Count = Field(default=None, description="Number of logits.")

    @model_validator(mode="after")
    def _can_be_passed_on(self) -> Self:
        # The others go to the big node as they came.
        try:
            json.dumps(self.__pydantic_extra__, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise InvalidRound(
                "params", "an object that JSON cannot hold", "finite numbers and valid Unicode"
            ) from None
        return self


class InitBody(SearchBody, WithProof):
    """A round as the chain describes it."""

    model_config = example(
        **SEARCH_EXAMPLE,
        params={"model": "embedded", "seq_len": 256},
        url="http://127.0.0.1:9100/v1/poc-batches",
    )

    node_id: MaybeNodeId = NOT_SET
    node_count: MaybeNodeCount = NOT_SET
    params: Params = Field(default_factory=Params, description="The model, by name or dimensions.")
    url: HttpUrl | None = Field(
        default=None,
        description="Where batches go: `/generated` and `/validated` are appended. Left out: "
        "POCQUEUE_NODE_CALLBACK_URL.",
    )
    callback_url: HttpUrl | None = Field(
        default=None, description="The same, in the words of the vLLM variant."
    )
    seq_len: MaybeSeqLen = Field(
        default=None, description="Of the vLLM variant; `params.seq_len` goes before it."
    )
    delegation_url: HttpUrl | None = Field(
        default=None,
        description="Delegate this round to another big node than that of the settings.",
    )
    delegation_auth_token: str | None = Field(
        default=None, description="Token for that big node; both of them, or none."
    )

    @field_validator("params", mode="before")
    @classmethod
    def _no_params(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("url", "callback_url", "delegation_url", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("delegation_auth_token", mode="before")
    @classmethod
    def _is_token(cls, value: object) -> object:
        if value is not None and not (isinstance(value, str) and _TOKEN.fullmatch(value)):
            # The value is a secret, and is not repeated.
            raise InvalidRound(
                "delegation_auth_token", "…", "1 to 1024 printable ASCII characters without spaces"
            )
        return value or None

    @model_validator(mode="after")
    def _names_both(self) -> Self:
        # Neither the token of the settings for another URL, nor a round at another big node than it asks for.
        if (self.delegation_url is None) is not (self.delegation_auth_token is None):
            given = "delegation_url" if self.delegation_url else "delegation_auth_token"
            missing = "delegation_auth_token" if self.delegation_url else "delegation_url"
            raise InvalidRound(missing, None, f"that of the same big node as {given}, or neither")
        return self

    def to_round(self, default_url: str | None, purpose: str = "") -> NodeRound:
        """Return the round.

        Args:
            default_url: callback URL of the settings.
            purpose: what it is wanted for, in errors.

        Raises:
            NodeStateError: the body does not say which node of how many this is.
            InvalidRound: it has no URL, and there is no other; or no node is of that number.
        """
        if NOT_SET in (self.node_id, self.node_count):
            raise NodeStateError(f"Node ID and node count must be set{purpose}")
        check_node(self.node_id, self.node_count)
        url = self.url or self.callback_url or default_url
        if url is None:
            raise InvalidRound(
                "url",
                None,
                "the http:// or https:// URL that batches go to, here or in POCQUEUE_NODE_CALLBACK_URL",
            )
        fields = self.model_dump(exclude={"params", "url", "callback_url", "seq_len"})
        default = self.proof.draft.get("seq_len", DEFAULT_SEQ_LEN)
        return NodeRound(
            **fields,
            seq_len=self.params.seq_len or self.seq_len or default,
            params=self.params.model_dump(exclude_none=True),
            url=url,
        )


_STATUS: dict[str, Any] = {
    "status": "GENERATING",
    "is_model_initialized": True,
    "delegation_mode": True,
    "gpu_count": 100,
    "session_id": "7f0c5e8e-55a4-4b0e-9d0a-3c1f6f0c9f5e",
    "block_hash": SEARCH_EXAMPLE["block_hash"],
    "node_id": 0,
    "total_batches": 50,
    "total_nonces": 104,
    "poll_lag_seconds": 0.412,
    "sampled_nonces": 9,
    "fraud_detected": False,
    "error": None,
    "signer": "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
    "outbox": {"waiting": 1, "refused": 0, "held": 0, "oldest_seconds": 0.02, "last_error": None},
    "distrusted": [],
}


class PowStatus(BaseModel):
    """How the small node stands. Legacy clients read the first four fields."""

    model_config = example(**_STATUS)

    status: str = Field(description="IDLE, NOT_LOADED, LOADING, GENERATING, VALIDATING or STOPPED.")
    is_model_initialized: bool = Field(description="Whether it has a round.")
    delegation_mode: bool = Field(description="Whether a big node searches for it.")
    gpu_count: int = Field(description="GPUs that search.")
    session_id: str | None = Field(default=None, description="Of the search at hand.")
    block_hash: str | None = Field(default=None, description="Of the round at hand.")
    node_id: int | None = Field(default=None, description="In the round at hand.")
    total_batches: int = Field(
        default=0, description="Batches with valid nonces that came in this search."
    )
    total_nonces: int = Field(default=0, description="Valid nonces in them.")
    poll_lag_seconds: float | None = Field(
        default=None, description="Since the big node last answered; null if none is asked."
    )
    sampled_nonces: int = Field(
        default=0, description="Nonces of this search that were recomputed here."
    )
    fraud_detected: bool = Field(
        default=False, description="Whether what came cannot be true; then nothing more is sent."
    )
    error: str | None = Field(default=None, description="What is wrong, in one sentence.")
    signer: str = Field(
        description="Public key that batches are signed with: compressed secp256k1, hexadecimal."
    )
    outbox: OutboxStatus
    distrusted: list[str] = Field(
        default=[],
        description="Big nodes that cheated, and are not used until this node's operator says so.",
    )


class OkAnswer(BaseModel):
    """It is done."""

    model_config = example(status="OK")

    status: str = "OK"


class RoundAnswer(OkAnswer):
    """What changed a round is answered with."""

    model_config = example(status="OK", pow_status=_STATUS)

    pow_status: PowStatus | str = Field(
        description="How the node stands; after a stop of nothing, `PoW is not running`."
    )
    warnings: list[str] = Field(
        default=[], description="What of the body is taken another way than it was asked for."
    )


class StateAnswer(BaseModel):
    """What the machine is used for."""

    model_config = example(state="POW")

    state: str = Field(description="POW, or STOPPED if there is no round.")


_ERRORS = {
    400: (
        "There is no round, its node is not set, or it cannot be validated here.",
        "Validation phase not supported in delegation mode",
    ),
    409: (
        "The round is for another model than the deployed one; names both.",
        "Model conflict: params ask for 'other'; deployed here is embedded (dim 256). …",
    ),
    413: ("The body is too large.", "The body is larger than 16777216 bytes."),
    422: (
        "A field has a value that is not allowed.",
        "r_target is -1.0; allowed: a number above 0.",
    ),
    429: (
        "The big node takes no more sessions now.",
        "Failed to start delegation session: Maximum sessions (10) reached. …",
    ),
    500: (
        "The engine failed on a batch; says why.",
        "The engine failed on a batch: CUDA out of memory",
    ),
    502: (
        "The big node refuses us; says why.",
        "Failed to start delegation session: Invalid auth token: …",
    ),
    503: (
        "It cannot be worked on now: no big node, GPU, engine or disk; says which.",
        "Failed to start delegation session: Connection refused. Check that …",
    ),
}
#: Error answers for the OpenAPI document, by status.
errors = partial(error_answers, _ERRORS)
