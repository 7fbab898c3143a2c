"""Bodies of the small node's routes: WIRE.md section 2, both of its eras.

Bounds are those of a round (`rounds/spec.py`); what depends on the model is checked by whoever has it.
Unknown fields are ignored: clients of several generations send more than this one needs.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pocqueue.api.errors import ErrorAnswer
from pocqueue.node.node_round import NodeRound
from pocqueue.rounds.spec import (
    MAX_BATCH_SIZE,
    MAX_BLOCK_HEIGHT,
    MAX_NODE_COUNT,
    HttpUrl,
    Text,
)

#: What MLNode takes where neither the body nor its params say.
DEFAULT_SEQ_LEN = 16

_EXAMPLE: dict[str, Any] = {
    "node_id": 0,
    "node_count": 1,
    "block_hash": "0x3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
    "block_height": 1458,
    "public_key": "gonka1qy352euf40x77qfrg4ncn27dauqjx3t83x4umm",
    "batch_size": 100,
    "r_target": 1.4013564660458173,
    "fraud_threshold": 1e-7,
    "params": {"model": "embedded", "seq_len": 256},
    "url": "http://127.0.0.1:9100/v1/poc-batches",
}


class Params(BaseModel):
    """The model that the proof is for: by name, or by the dimensions that older chains send."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Text | None = None
    seq_len: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=1)
    n_layers: int | None = Field(default=None, ge=1)
    n_heads: int | None = Field(default=None, ge=1)
    n_kv_heads: int | None = Field(default=None, ge=1)
    vocab_size: int | None = Field(default=None, ge=1)


class InitBody(BaseModel):
    """A round as the chain describes it."""

    model_config = ConfigDict(allow_inf_nan=False, json_schema_extra={"examples": [_EXAMPLE]})

    #: -1, in both, is how clients say "not set".
    node_id: int = Field(default=-1, ge=-1)
    node_count: int = Field(default=-1, ge=-1, le=MAX_NODE_COUNT)
    block_hash: Text
    block_height: int = Field(ge=0, le=MAX_BLOCK_HEIGHT)
    public_key: Text
    batch_size: int = Field(default=32, ge=1, le=MAX_BATCH_SIZE)
    #: Distance in [0, 2] that a nonce has to stay below.
    r_target: float = Field(gt=0, le=2)
    fraud_threshold: float = Field(default=0.01, gt=0, lt=1)
    params: Params = Field(default_factory=Params)
    #: Where signed batches go: `/generated` and `/validated` are appended.
    url: HttpUrl | None = None
    #: The same, in the words of the vLLM variant.
    callback_url: HttpUrl | None = None
    #: Of the vLLM variant; `params.seq_len` goes before it.
    seq_len: int | None = Field(default=None, ge=1)
    #: Delegate this round to another big node than that of the settings.
    delegation_url: HttpUrl | None = None
    delegation_auth_token: str | None = Field(default=None, max_length=1024)

    @property
    def has_node(self) -> bool:
        """Whether the body says which node of how many this is."""
        return self.node_id != -1 and self.node_count != -1

    def to_round(self, default_url: str | None) -> NodeRound | None:
        """Return the round, or None where the body has no URL and there is no other.

        Args:
            default_url: callback URL of the settings.
        """
        url = self.url or self.callback_url or default_url
        if url is None:
            return None
        fields = self.model_dump(exclude={"params", "url", "callback_url", "seq_len"})
        return NodeRound(
            **fields,
            seq_len=self.params.seq_len or self.seq_len or DEFAULT_SEQ_LEN,
            params=self.params.model_dump(exclude_none=True),
            url=url,
        )


class OutboxStatus(BaseModel):
    """Signed batches that are still on disk."""

    #: Not confirmed by the receiver yet.
    waiting: int
    #: Answered with a final error by the receiver.
    refused: int
    #: Of a session that was found to be fraud; never sent.
    held: int
    #: Age of the oldest one that waits, seconds; 0 where none does.
    oldest_seconds: float


class PowStatus(BaseModel):
    """How the small node stands. The first four fields are seed 000's."""

    status: str = Field(description="IDLE, NOT_LOADED, LOADING, GENERATING, VALIDATING or STOPPED")
    is_model_initialized: bool
    delegation_mode: bool
    gpu_count: int
    session_id: str | None = None
    block_hash: str | None = None
    node_id: int | None = None
    #: Batches and valid nonces received or found in this round.
    total_batches: int = 0
    total_nonces: int = 0
    #: Seconds since the big node was last heard; null where none is asked.
    poll_lag_seconds: float | None = None
    #: Nonces of this round that were recomputed here, and whether they are fraud.
    sampled_nonces: int = 0
    fraud_detected: bool = False
    #: What is wrong, in one sentence.
    error: str | None = None
    signer: str
    outbox: OutboxStatus


class RoundAnswer(BaseModel):
    """What changed a round is answered with."""

    status: str = "OK"
    pow_status: PowStatus | str


class StateAnswer(BaseModel):
    """What the machine is used for."""

    state: str = Field(description="POW or STOPPED", examples=["POW"])


class OkAnswer(BaseModel):
    """It is done."""

    status: str = "OK"


#: Error answers of the proof routes, for the OpenAPI document.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {
        "model": ErrorAnswer,
        "description": "There is no round, or it cannot be validated here.",
    },
    409: {
        "model": ErrorAnswer,
        "description": "The round is for another model than the deployed one.",
    },
    422: {"model": ErrorAnswer, "description": "A field has a value that is not allowed."},
    429: {"model": ErrorAnswer, "description": "The big node takes no more sessions now."},
    500: {"model": ErrorAnswer, "description": "The engine failed on a batch; says why."},
    502: {"model": ErrorAnswer, "description": "The big node refuses us; says why."},
    503: {"model": ErrorAnswer, "description": "Nobody can work on it now; says why."},
}
