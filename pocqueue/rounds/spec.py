"""What a round is: its specification, checked once at the edge, and the states it goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import override

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import InvalidRound
from pocqueue.poc.fields import Allowed, HttpUrl, Text, build
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.poc.scheme import DEFAULT, ProofSearch, scheme_class
from pocqueue.poc.search import BlockHeight, NodeCount, NodeId

MAX_WINDOW_S = 3600.0
MAX_SHARE = 100.0
#: Most nonces that a round can be given. Workers and schedulers read them with the rest of the round.
MAX_GIVEN = 10_000


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


Seconds = Annotated[
    float,
    Field(gt=0, le=MAX_WINDOW_S),
    Allowed(f"seconds, above 0 and up to {MAX_WINDOW_S:.0f} (one hour)"),
]
Share = Annotated[float, Field(ge=0.01, le=MAX_SHARE), Allowed("a number from 0.01 to 100")]
MaxNonces = Annotated[
    Annotated[int, Field(ge=1, le=2**48)] | None,
    Allowed("a whole number from 1 to 2^48, or none for no limit"),
]


def _each_once(nonces: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if nonces is not None and len(set(nonces)) < len(nonces):
        [(twice, _)] = Counter(nonces).most_common(1)
        raise InvalidRound("given_nonces", twice, "each nonce once; this one is repeated")
    return nonces


#: Left out where it is not set: what is written of other rounds stays as it was, and older workers read it.
_OPTIONAL = Field(exclude_if=lambda value: value is None)
GivenNonces = Annotated[
    Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_NONCE)], ...],
        Field(min_length=1, max_length=MAX_GIVEN),
    ]
    | None,
    Allowed(f"1 to {MAX_GIVEN} whole numbers from 0 to 2^63 - 1, or none for those of the node"),
    AfterValidator(_each_once),
    _OPTIONAL,
]
ValidRate = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None, Allowed("a number from 0 to 1, or none")
]
ModelName = Annotated[Text, Allowed("the name of a deployed model")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Allowed("64 hexadecimal digits")]


class RoundSpec(ProofSearch):
    """One search: what to look for, with which model, for how long.

    Made through `RoundSpec.build`, which turns a bad field into `InvalidRound`.
    """

    model_config = ConfigDict(extra="forbid")

    # The only node, and no particular height, unless the round says otherwise.
    block_height: BlockHeight = 0
    node_id: NodeId = 0
    node_count: NodeCount = 1
    window_s: Seconds = 330.0  #: from the start of the round to its deadline
    model: ModelName  #: name of the deployed model, as its workers give it
    model_fingerprint: Fingerprint  #: SHA-256 over the model's config and weights
    #: Arithmetic of the model, as its workers give it; None: any. Distances in bfloat16 and float32
    #: differ by enough to put about one honest nonce in a hundred on the other side of r_target.
    model_dtype: str | None = Field(default=None, max_length=32)
    #: Runtime of the model (`EngineInfo.runtime`); None: any. Torch and vLLM differ by about as much.
    model_runtime: str | None = Field(default=None, max_length=64)
    callback_url: HttpUrl | None = None
    customer: Text | None = None  #: whose session of a delegation it is; None: a round of our own
    share: Share = 1.0  #: weight among active rounds when GPUs are shared out
    #: End the round once this many nonce indices are checked; None: search until the deadline.
    max_nonces: MaxNonces = None
    #: Compute these nonces, whoever's they are, and no other: the nonce of index i is the i-th of them, and
    #: `max_nonces` is their number. None: those of the node.
    given_nonces: GivenNonces = None
    #: Who asked for it, for people; None: whoever started it.
    asked_by: Annotated[Text | None, _OPTIONAL] = None
    #: Share of nonces expected to be valid, if the r_target was chosen by calibration.
    expected_valid_rate: ValidRate = None

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Make a specification.

        Raises:
            InvalidRound: a field is out of bounds; names the field, the value and what is allowed.
        """
        spec = build(cls, fields, [scheme_class(fields.get("scheme", DEFAULT))])
        if spec.given_nonces is not None:
            if (largest := max(spec.given_nonces)) > spec.proof.max_nonce:
                raise InvalidRound("given_nonces", largest, f"nonces up to {spec.proof.max_nonce}")
            return spec.model_copy(update={"max_nonces": len(spec.given_nonces)})
        if spec.proof.max_nonce == MAX_NONCE:
            return spec
        # A round ends with the last nonce that its scheme has.
        node, count = spec.stride
        most = (spec.proof.max_nonce - node) // count + 1
        if most < 1:
            raise InvalidRound(
                "node_id", spec.node_id, f"one with nonces up to {spec.proof.max_nonce}"
            )
        return spec.model_copy(update={"max_nonces": min(spec.max_nonces or most, most)})

    @override
    def nonces(self, start: int, stop: int) -> Sequence[int]:
        if self.given_nonces is None:
            return super().nonces(start, stop)
        if not 0 <= start <= stop <= len(self.given_nonces):
            allowed = f"a part of 0 … {len(self.given_nonces)}"
            raise InvalidRound("nonce range", f"{start} … {stop}", allowed)
        return self.given_nonces[start:stop]

    @override
    def index_of(self, nonce: int) -> int:
        if self.given_nonces is None:
            return super().index_of(nonce)
        if nonce not in self._indices:
            raise InvalidRound("nonce", nonce, "one of those that the round was given")
        return self._indices[nonce]

    @cached_property
    def _indices(self) -> Mapping[int, int]:
        return {nonce: index for index, nonce in enumerate(self.given_nonces or ())}

    @property
    def pass_tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.batch_size * self.seq_len

    def is_held_by(self, info: EngineInfo) -> bool:
        """Say whether one forward pass is within what a GPU with this model says that it can run."""
        return (
            self.seq_len <= info.max_seq_len
            and self.batch_size <= (info.max_pass_nonces or self.batch_size)
            and self.pass_tokens <= (info.max_pass_tokens or self.pass_tokens)
        )

    def is_served_by(self, info: EngineInfo) -> bool:
        """Say whether a GPU with this model may work on the round."""
        return (
            self.model_fingerprint == info.fingerprint
            and self.model_dtype in {None, info.dtype}
            and self.model_runtime in {None, info.runtime}
        )
