"""Bodies of the delegation routes; docs/wire.md.

Bounds are those of a round (`poc/search.py`); what depends on the deployed model is checked when the
session starts. Unknown fields are ignored: clients of several generations send more than is needed.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from pocqueue.poc.artifact.refusals import refuse_decode
from pocqueue.poc.distance.scheme import BATCH_EXAMPLE, SEARCH_EXAMPLE
from pocqueue.poc.fields import HttpUrl, Text
from pocqueue.poc.scheme import WithProof
from pocqueue.poc.search import SearchBody, SeqLen
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.start import ModelWish, draft_spec
from pocqueue.web.errors import error_answers
from pocqueue.web.schema import example

#: Any dimension of a model.
Dimension = Annotated[int, Field(ge=1, le=2**31 - 1)]
_SESSION_ID = "7f9c24e8-3b12-4fef-91d0-4a1c8a3b5d11"
#: In examples, in the place of a token.
_YOURS = "YOUR-TOKEN"


class ModelParams(BaseModel):
    """The model that is asked for. Other fields, which older clients send, are ignored, but for those of the decode scheme."""

    model: Text | None = Field(
        default=None,
        description="Name of the deployed model, or the first digits (8 or more) of its fingerprint.",
    )
    seq_len: SeqLen | None = Field(
        default=None,
        description="Positions of one nonce's input; if nothing says, 256, and of artifacts 1024.",
    )
    dim: Dimension | None = Field(default=None, description="Width of an input embedding.")
    n_layers: Dimension | None = None
    n_heads: Dimension | None = None
    n_kv_heads: Dimension | None = None
    vocab_size: Dimension | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_not_decode(cls, given: Any) -> Any:
        return refuse_decode(given, "params.")

    def to_wish(self) -> ModelWish:
        """Return what is said about the model."""
        return ModelWish(**self.model_dump(exclude={"seq_len"}))


class StartBody(SearchBody, WithProof):
    """A session as a small node asks for it."""

    model_config = example(
        **SEARCH_EXAMPLE, params={"model": "embedded", "seq_len": 256}, auth_token=_YOURS
    )

    params: Annotated[
        ModelParams, BeforeValidator(lambda given: {} if given is None else given)
    ] = Field(default_factory=ModelParams)
    auth_token: str | None = Field(default=None, description="The token, if it is not in a header.")
    request_id: UUID | None = Field(
        default=None,
        description="Your own name for this request. Asked again with the same one, as after an answer "
        "that was lost, the same session is the answer.",
    )
    callback_url: HttpUrl | None = Field(
        default=None,
        description="Where batches are posted as well (`/generated` is appended); a public address.",
    )

    def to_draft(self) -> RoundSpec:
        """Return what is to be searched.

        Raises:
            InvalidRound: a field is out of bounds.
        """
        fields = self.model_dump(exclude={"params", "auth_token", "request_id"})
        return draft_spec(**fields, seq_len=self.params.seq_len)


class StartAnswer(BaseModel):
    """A session that began."""

    model_config = example(
        session_id=_SESSION_ID,
        status="initializing",
        message="Session created with 100 GPU groups",
        warning="",
        gpu_count=100,
        proof="distance",
        model="embedded",
        model_fingerprint="0" * 64,
        model_dtype="bfloat16",
        model_runtime="vllm",
        expires_in=330.0,
    )

    session_id: str
    status: str
    message: str = Field(description="With the warning behind it.")
    warning: str = Field(
        default="",
        description="What is searched another way than it was asked for: another model, a batch_size that no "
        "GPU takes, an r_target above every distance. Empty: nothing.",
    )
    gpu_count: int = Field(description="Live GPUs that search for it.")
    model: str
    proof: str = Field(description="How nonces are proven: distance or artifact.")
    model_fingerprint: str = Field(description="SHA-256 over its configuration and weights.")
    model_dtype: str = Field(description="Arithmetic, such as bfloat16.")
    model_runtime: str = Field(description="What runs it, such as torch, vllm or vllm-x2.")
    expires_in: float = Field(description="Seconds after which the session ends by itself.")


class BatchAnswer(BaseModel):
    """What a session keeps of one batch."""

    public_key: str
    block_hash: str
    block_height: int
    nonces: list[int]
    dist: list[float] | None = Field(default=None, description="Of distances: one for each nonce.")
    vectors: list[str] | None = Field(
        default=None,
        description="Of artifacts: for each nonce k_dim float16, little-endian, in base64.",
    )
    node_id: int
    scheme: str | None = Field(default=None, description="artifact; left out for distances.")


class BatchesAnswer(BaseModel):
    """Batches of a session, oldest first, and how it stands."""

    model_config = example(
        session_id=_SESSION_ID,
        batches=[BATCH_EXAMPLE],
        session_active=True,
        status="generating",
        total_batches_generated=50,
        cursor="1800000000000-50",
    )

    session_id: str
    batches: list[BatchAnswer]
    session_active: bool = Field(
        description="Whether more may come: false only once all batches are handed over."
    )
    status: str = Field(description="initializing, generating, stopped, expired or error.")
    total_batches_generated: int = Field(description="Batches with valid nonces, of all replies.")
    cursor: str = Field(description="Behind the last batch: for the next request, or again later.")
    reason: str | None = Field(default=None, description="Why the session ended, if that is known.")


class StopBody(BaseModel):
    """A session that is to end."""

    model_config = example(session_id=_SESSION_ID, auth_token=_YOURS)

    session_id: str = Field(max_length=256)
    auth_token: str | None = Field(default=None, description="The token, if it is not in a header.")


class StopAnswer(BaseModel):
    """A session that ended; its batches can still be fetched."""

    model_config = example(
        session_id=_SESSION_ID,
        status="stopped",
        message="Session stopped successfully",
        total_batches_generated=50,
    )

    session_id: str
    status: str
    message: str
    total_batches_generated: int


class SessionAnswer(BaseModel):
    """How a session stands."""

    status: str = Field(description="initializing, generating, stopped, expired or error.")
    node_id: int
    gpu_count: int = Field(description="Live GPUs that can search for it.")
    total_generated: int = Field(description="Batches with valid nonces.")
    age_seconds: float
    created_at: float = Field(description="Unix time in seconds.")
    total_nonces: int = Field(description="Valid nonces.")
    total_checked: int = Field(description="Nonces searched.")


class SessionsAnswer(BaseModel):
    """The sessions of the last hour: the caller's, or everybody's if status is public."""

    model_config = example(
        total_sessions=1,
        active_sessions=1,
        max_sessions=10,
        sessions={
            _SESSION_ID: {
                "status": "generating",
                "node_id": 0,
                "gpu_count": 100,
                "total_generated": 50,
                "age_seconds": 120.5,
                "created_at": 1800000000.0,
                "total_nonces": 104,
                "total_checked": 51200,
            }
        },
    )

    total_sessions: int
    active_sessions: int
    max_sessions: int = Field(description="That the caller may have at a time.")
    sessions: dict[str, SessionAnswer]


class HealthAnswer(BaseModel):
    """The service and its Redis answer."""

    status: str = "ok"


_ERRORS = {
    401: (
        "The token is missing or wrong.",
        "Invalid auth token: check that DELEGATION_AUTH_TOKEN is the same on both nodes.",
    ),
    404: (
        "The caller has no such session.",
        f"Session {_SESSION_ID} not found: sessions are kept for an hour after they end. Start another one.",
    ),
    409: (
        "Another model is deployed than the one asked for; names both.",
        "Model conflict: asked for 'other'; deployed is embedded (03696e98f7bf@bfloat16@torch). …",
    ),
    413: ("The body is too large.", "The body is larger than 65536 bytes."),
    422: (
        "A field has a value that is not allowed.",
        "r_target is -1.0; allowed: a number above 0.",
    ),
    429: (
        "There are as many sessions as there may be, or too many wrong tokens came from this address.",
        "Maximum sessions (10) reached. The next one ends in 42 s at the latest; try again then, …",
    ),
    503: (
        "No GPU is live, or Redis does not answer.",
        "No live GPU takes work now. …",
    ),
}
#: Error answers for the OpenAPI document, by status.
errors = partial(error_answers, _ERRORS)
