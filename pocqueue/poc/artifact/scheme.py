"""The artifact scheme, as rounds see it: a value is an artifact as base64 text, and every finite one is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from pocqueue.errors import InvalidRound
from pocqueue.poc.artifact import data
from pocqueue.poc.canonical import malformed
from pocqueue.poc.fields import Allowed
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import ProofScheme
from pocqueue.poc.search import SearchBody

#: Most dimensions of an artifact; those of the network have 12.
MAX_K_DIM = 64
MAX_GROUPS = 4096

KDim = Annotated[
    int,
    Field(ge=1, le=MAX_K_DIM, description="How many numbers an artifact has."),
    Allowed(f"an integer from 1 to {MAX_K_DIM}"),
]
DistThreshold = Annotated[
    float,
    Field(
        ge=0, le=2, description="Two artifacts of a nonce that are farther apart are a mismatch."
    ),
    Allowed("a number from 0 to 2"),
]
PMismatch = Annotated[
    float,
    Field(gt=0, lt=1, description="Chance of an honest nonce to be a mismatch, by float error."),
    Allowed("a number above 0 and below 1"),
]
NumGroups = Annotated[
    int,
    Field(ge=1, le=MAX_GROUPS, description="Groups that share the node's nonces."),
    Allowed(f"a whole number from 1 to {MAX_GROUPS}"),
]
GroupId = Annotated[
    int,
    Field(ge=0, description="Which of the groups this is, below n_groups."),
    Allowed("a whole number from 0 to n_groups - 1"),
]


class Artifact(ProofScheme):
    """A vector of `k_dim` numbers for every nonce, compared by `dist_threshold`."""

    name: ClassVar[str] = "artifact"
    field: ClassVar[str] = "vectors"
    maths: ClassVar[str] = "pocqueue.poc.artifact.maths:ArtifactMaths"
    value_type: ClassVar[Any] = Annotated[str, Field(max_length=3 * MAX_K_DIM)]
    noun: ClassVar[str] = "artifact"
    possible: ClassVar[str] = "base64 of k_dim float16, all finite"
    other_runtime: ClassVar[str] = (
        "artifacts are farther apart by float error, which dist_threshold has to allow for"
    )
    signed_parameters: ClassVar[tuple[str, ...]] = (
        "dist_threshold",
        "p_mismatch",
        "fraud_threshold",
    )

    keeps_all: ClassVar[bool] = True
    #: Positions of a nonce in the network.
    draft: ClassVar[Mapping[str, Any]] = {"seq_len": 1024}
    #: The network's wire has no place for a signature.
    is_signed: ClassVar[bool] = False
    #: Go's store and proofs of the network have 32 bits for one.
    max_nonce: ClassVar[int] = 2**31 - 1

    k_dim: KDim = 12
    stronger_rng: bool = False
    #: A node's nonces are shared out among so many groups of its GPUs, of which this round is one.
    n_groups: NumGroups = 1
    group_id: GroupId = 0
    # What the network's chain takes where it says nothing else.
    dist_threshold: DistThreshold = 0.4
    p_mismatch: PMismatch = 0.1

    @model_validator(mode="after")
    def _group_id_below_count(self) -> Self:
        if self.group_id >= self.n_groups:
            allowed = f"a whole number from 0 to n_groups - 1 = {self.n_groups - 1}"
            raise InvalidRound("group_id", self.group_id, allowed)
        return self

    @override
    def stride(self, node_id: int, node_count: int) -> tuple[int, int]:
        return node_id + self.group_id * node_count, node_count * self.n_groups

    @property
    @override
    def options(self) -> tuple[tuple[str, Any], ...]:
        return (("k_dim", self.k_dim), ("stronger_rng", self.stronger_rng))

    @override
    def is_kept(self, value: Any) -> bool:
        return value is not None

    @override
    def is_broken(self, value: Any) -> bool:
        return value is None

    @override
    def probability_mismatch(self, *, same_arithmetic: bool = True) -> float:
        return self.p_mismatch

    @override
    def honest_difference(self, vocab_size: int) -> float:
        return self.dist_threshold

    @override
    def is_possible(self, value: Any) -> bool:
        try:
            vector = data.decode(value)
        except ValueError:
            return False
        return len(vector) == self.k_dim and bool(np.isfinite(vector).all())

    @override
    def refusal(self, value: Any) -> str | None:
        if self.is_possible(value):
            return None
        return f"claims artifact {value!r}, which is not {self.possible}"

    @override
    def is_mismatch(self, received: Any, computed: Any) -> bool:
        return not self.difference(received, computed) <= self.dist_threshold

    @override
    def difference(self, received: Any, computed: Any) -> float:
        if received is None or computed is None:
            return math.nan
        found = data.distance(computed, received, self.k_dim)
        return math.nan if found is None else found

    @override
    def callback_body(self, search: SearchBody, proofs: Proofs) -> dict[str, Any]:
        return data.generated_body(search, proofs, self.k_dim)

    @classmethod
    @override
    def signed_value(cls, value: object, name: str, *, in_verdict: bool) -> str:
        if value is None and in_verdict:
            return "null"
        try:
            data.decode(str(value))
        except ValueError:
            raise malformed(name, value, f"lists of texts that are {cls.possible}") from None
        return str(value)

    @override
    def facts(self) -> list[tuple[str, str]]:
        found = [("k_dim", str(self.k_dim)), ("dist_threshold", f"{self.dist_threshold:g}")]
        if self.n_groups > 1:
            found.append(("group", f"{self.group_id} of {self.n_groups}"))
        if self.stronger_rng:
            found.append(("inputs", "by the stronger RNG"))
        return found

    @override
    def show(self, value: Any, digits: int = 6) -> str:
        return str(value)
