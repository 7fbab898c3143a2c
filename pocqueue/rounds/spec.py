"""What a round is: its specification, checked once at the edge, and the states it goes through."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig

MAX_WINDOW_S = 3600.0
MAX_TEXT = 256
MAX_BATCH_SIZE = 4096
#: Every nonce of a round has to fit into a signed 64-bit integer on the wire.
MAX_NODE_COUNT = 2**31 - 1
MAX_BLOCK_HEIGHT = 2**63 - 1


class RoundState(Enum):
    """Where a round is in its life. Only an active round counts batches."""

    ACTIVE = "active"  #: GPUs search nonces for it
    COMPLETED = "completed"  #: as many nonce indices as it asked for are checked
    EXPIRED = "expired"  #: its window closed
    STOPPED = "stopped"  #: somebody stopped it
    FAILED = "failed"  #: it could not go on; its reason says why

    @property
    def is_active(self) -> bool:
        return self is RoundState.ACTIVE


def _printable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("allowed", "1 to 256 characters, not all of them blank")
    if not text.isprintable():
        raise PydanticCustomError("allowed", "1 to 256 printable characters on one line")
    return text


def _http_url(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in url):
        raise PydanticCustomError("allowed", "an http:// or https:// URL with a host")
    if parts.username is not None:
        raise PydanticCustomError("allowed", "a URL without a user name or password in it")
    return url


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_printable)]
HttpUrl = Annotated[str, Field(max_length=2048), AfterValidator(_http_url)]

#: What each field may be, in the words of an error message.
ALLOWED = {
    "block_hash": f"1 to {MAX_TEXT} printable characters",
    "public_key": f"1 to {MAX_TEXT} printable characters",
    "block_height": "a whole number from 0 to 2^63 - 1",
    "node_id": "a whole number from 0 to node_count - 1",
    "node_count": f"a whole number from 1 to {MAX_NODE_COUNT}",
    "r_target": "a number above 0 and up to 2",
    "fraud_threshold": "a number above 0 and below 1",
    "window_s": f"seconds, above 0 and up to {MAX_WINDOW_S:.0f} (one hour)",
    "seq_len": "a whole number from 1 to the model's limit",
    "batch_size": f"a whole number from 1 to {MAX_BATCH_SIZE}",
    "share": "a number from 0.01 to 100",
    "max_nonces": "a whole number from 1 to 2^48, or none for no limit",
    "callback_url": "an http:// or https:// URL of at most 2048 characters",
    "customer": f"1 to {MAX_TEXT} printable characters, or none",
    "model": "the name of a deployed model",
    "model_fingerprint": "64 hexadecimal digits",
    "expected_valid_rate": "a number from 0 to 1, or none",
}


class RoundSpec(BaseModel):
    """One search: what to look for, with which model, for how long.

    Made through `RoundSpec.build`, which turns a bad field into `InvalidRound`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    block_hash: Text
    block_height: int = Field(default=0, ge=0, le=MAX_BLOCK_HEIGHT)
    public_key: Text
    node_id: int = Field(default=0, ge=0)
    node_count: int = Field(default=1, ge=1, le=MAX_NODE_COUNT)
    #: Distance in [0, 2] that a nonce has to stay below.
    r_target: float = Field(gt=0, le=2)
    fraud_threshold: float = Field(default=0.01, gt=0, lt=1)
    #: Seconds from the start of the round to its deadline.
    window_s: float = Field(default=330.0, gt=0, le=MAX_WINDOW_S)
    #: Positions of one nonce's input.
    seq_len: int = Field(default=256, ge=1)
    #: Nonces of one forward pass.
    batch_size: int = Field(default=32, ge=1, le=MAX_BATCH_SIZE)
    #: Name of the deployed model, as its workers give it.
    model: Text
    #: SHA-256 over the model's config and weights, 64 hexadecimal digits.
    model_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: Arithmetic of the model, as its workers give it; None: any. Distances in bfloat16 and float32
    #: differ by enough to put about one honest nonce in a hundred on the other side of r_target.
    model_dtype: str | None = Field(default=None, max_length=32)
    #: Runtime of the model (`EngineInfo.runtime`); None: any. Torch and vLLM differ by about as much.
    model_runtime: str | None = Field(default=None, max_length=64)
    callback_url: HttpUrl | None = None
    #: Whose session of a delegation it is; None: a round of our own.
    customer: Text | None = None
    #: Weight among active rounds when GPUs are shared out.
    share: float = Field(default=1.0, ge=0.01, le=100)
    #: End the round once this many nonce indices are checked; None: search until the deadline.
    max_nonces: int | None = Field(default=None, ge=1, le=2**48)
    #: Share of nonces expected to be valid, where the r_target was chosen by calibration.
    expected_valid_rate: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _node_id_below_count(self) -> Self:
        if self.node_id >= self.node_count:
            raise InvalidRound(
                "node_id",
                self.node_id,
                f"a whole number from 0 to node_count - 1 = {self.node_count - 1}",
            )
        return self

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Make a specification.

        Raises:
            InvalidRound: a field is out of bounds; names the field, the value and what is allowed.
        """
        try:
            return cls(**fields)
        except ValidationError as exc:
            problem = exc.errors()[0]
            if isinstance(raised := problem.get("ctx", {}).get("error"), InvalidRound):
                raise raised from None
            name = str(problem["loc"][0]) if problem["loc"] else "round"
            # For a missing field pydantic's input is all the others.
            value = None if problem["type"] == "missing" else problem["input"]
            own_words = problem["type"] == "allowed"
            allowed = problem["msg"] if own_words else ALLOWED.get(name, problem["msg"])
            raise InvalidRound(name, value, allowed) from None

    def is_served_by(self, info: EngineInfo) -> bool:
        """Say whether a GPU with this model may work on the round."""
        return (
            self.model_fingerprint == info.fingerprint
            and self.model_dtype in {None, info.dtype}
            and self.model_runtime in {None, info.runtime}
        )

    def poc_config(self) -> PoCConfig:
        """Return the same search in the words of `pocqueue.poc`."""
        return PoCConfig(
            block_hash=self.block_hash,
            block_height=self.block_height,
            public_key=self.public_key,
            r_target=self.r_target,
            fraud_threshold=self.fraud_threshold,
            node_id=self.node_id,
            node_count=self.node_count,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            callback_url=self.callback_url,
        )
