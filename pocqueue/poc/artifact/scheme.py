"""The artifact scheme, as rounds see it: a value is an artifact as base64 text, and every finite one is kept."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from pocqueue.poc.artifact import data
from pocqueue.poc.canonical import malformed
from pocqueue.poc.fields import Allowed
from pocqueue.poc.scheme import ProofScheme

#: Most dimensions of an artifact; those of the network have 12.
MAX_K_DIM = 64

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


class Artifact(ProofScheme):
    """A vector of `k_dim` numbers for every nonce, compared by `dist_threshold`."""

    name: ClassVar[str] = "artifact"
    field: ClassVar[str] = "vectors"
    maths: ClassVar[str] = "pocqueue.poc.artifact.maths:ArtifactMaths"
    value_type: ClassVar[Any] = Annotated[str, Field(max_length=3 * MAX_K_DIM)]
    noun: ClassVar[str] = "artifact"
    possible: ClassVar[str] = "base64 of k_dim float16, all finite"
    other_runtime: ClassVar[str] = "artifacts are farther apart by float error"
    signed_parameters: ClassVar[tuple[str, ...]] = (
        "dist_threshold",
        "p_mismatch",
        "fraud_threshold",
    )

    k_dim: KDim = 12
    stronger_rng: bool = False
    # What the network's chain takes where it says nothing else.
    dist_threshold: DistThreshold = 0.4
    p_mismatch: PMismatch = 0.1

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
    def is_possible(self, value: Any) -> bool:
        return data.distance(value, value, self.k_dim) is not None

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
        return [("k_dim", str(self.k_dim)), ("dist_threshold", f"{self.dist_threshold:g}")]

    @override
    def show(self, value: Any, digits: int = 6) -> str:
        return str(value)
