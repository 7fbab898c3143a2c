"""A second proof scheme, for tests alone: a vector a nonce, no r_target, every nonce kept.

This module and `vector_maths.py` are all there is of it, as `poc/scheme.py` promises.
"""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from pocqueue.poc.canonical import malformed
from pocqueue.poc.scheme import CLASSES, ProofScheme


class Vectors(ProofScheme):
    """Vectors of `size` numbers; a claim may be off by `tolerance` in each."""

    name: ClassVar[str] = "vector"
    field: ClassVar[str] = "vectors"
    maths: ClassVar[str] = "tests.support.vector_maths:VectorMaths"
    value_type: ClassVar[Any] = list[float]
    noun: ClassVar[str] = "vector"
    possible: ClassVar[str] = "as many numbers as the round's vectors have"
    other_runtime: ClassVar[str] = "vectors differ by float error"
    signed_parameters: ClassVar[tuple[str, ...]] = ("size", "tolerance", "fraud_threshold")

    size: int = Field(default=3, ge=1, le=64)
    tolerance: float = Field(default=0.01, gt=0)

    @property
    @override
    def options(self) -> tuple[tuple[str, Any], ...]:
        return (("k_dim", self.size),)

    @override
    def is_kept(self, value: Any) -> bool:
        return not self.is_broken(value)

    @override
    def is_broken(self, value: Any) -> bool:
        return not all(map(math.isfinite, value))

    @override
    def is_possible(self, value: Any) -> bool:
        return len(value) == self.size

    @override
    def probability_mismatch(self, *, same_arithmetic: bool = True) -> float:
        return 0.001 if same_arithmetic else 0.1

    @override
    def honest_difference(self, vocab_size: int) -> float:
        return self.tolerance

    @override
    def refusal(self, value: Any) -> str | None:
        if self.is_possible(value):
            return None
        return f"claims {len(value)} numbers; they are {self.size}"

    @override
    def is_mismatch(self, received: Any, computed: Any) -> bool:
        return not self.difference(received, computed) <= self.tolerance

    @override
    def difference(self, received: Any, computed: Any) -> float:
        if len(received) != len(computed):
            return math.nan
        return float(max(abs(a - b) for a, b in zip(received, computed, strict=True)))

    @classmethod
    @override
    def signed_value(cls, value: object, name: str, *, in_verdict: bool) -> str:
        if not isinstance(value, list) or not all(isinstance(item, float) for item in value):
            raise malformed(name, value, "lists of numbers")
        return struct.pack(f">{len(value)}d", *value).hex()

    @override
    def facts(self) -> list[tuple[str, str]]:
        return [("vector size", str(self.size))]

    @override
    def show(self, value: Any, digits: int = 6) -> str:
        return " ".join(f"{number:.{digits}f}" for number in value)


def vector_of(nonce: int, size: int = 3) -> list[float]:
    """Return the vector of a nonce on a `FakeEngine`."""
    return [nonce + index / 8 for index in range(size)]


CLASSES[Vectors.name] = f"{__name__}:Vectors"
