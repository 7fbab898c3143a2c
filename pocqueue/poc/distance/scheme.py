"""The distance scheme, as rounds see it: a value is a distance in [0, 2], kept below `r_target`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from pocqueue.poc.canonical import binary64
from pocqueue.poc.distance.data import (
    OTHER_ARITHMETIC,
    finite_or_none,
    is_mismatch,
    is_valid,
    repeated,
)
from pocqueue.poc.fields import Allowed
from pocqueue.poc.fraud import PROBABILITY_MISMATCH
from pocqueue.poc.proofs import Proofs, Verdict
from pocqueue.poc.scheme import ProofScheme
from pocqueue.poc.search import SearchBody

RTarget = Annotated[
    float,
    Field(gt=0, le=2, description="Distance that a nonce has to stay below."),
    Allowed("a number above 0 and up to 2"),
]


class Distance(ProofScheme):
    """Distances below `r_target`."""

    name: ClassVar[str] = "distance"
    field: ClassVar[str] = "dist"
    maths: ClassVar[str] = "pocqueue.poc.distance.maths:DistanceMaths"
    value_type: ClassVar[Any] = float
    noun: ClassVar[str] = "distance"
    possible: ClassVar[str] = "0 to 2"
    # Torch and vLLM in bfloat16 put 0.6 to 0.7 % of valid nonces on different sides of r_target (measured
    # on the embedded model), over ten times what the fraud test allows for.
    other_runtime: ClassVar[str] = (
        "about one valid nonce in 150 comes out on the other side of r_target by float error alone, "
        "which the fraud test takes for fraud"
    )
    draft: ClassVar[Mapping[str, Any]] = {"r_target": 2.0}
    signed_parameters: ClassVar[tuple[str, ...]] = ("r_target", "fraud_threshold")

    r_target: RTarget

    @override
    def is_kept(self, value: Any) -> bool:
        return is_valid(value, self.r_target)

    @override
    def is_broken(self, value: Any) -> bool:
        return not math.isfinite(value)

    @override
    def probability_mismatch(self, *, same_arithmetic: bool = True) -> float:
        return PROBABILITY_MISMATCH if same_arithmetic else OTHER_ARITHMETIC

    @override
    def is_possible(self, value: Any) -> bool:
        return bool(0 <= value <= 2)

    @override
    def refusal(self, value: Any) -> str | None:
        if value >= 0 and self.is_kept(value):
            return None
        return f"claims distance {value}, which is not valid"

    @override
    def is_mismatch(self, received: Any, computed: Any) -> bool:
        return is_mismatch(received, computed, self.r_target)

    @override
    def difference(self, received: Any, computed: Any) -> float:
        return float(abs(received - computed))

    @classmethod
    @override
    def to_json(cls, value: Any) -> Any:
        return finite_or_none(value)

    @override
    def verdict_body(self, search: SearchBody, verdict: Verdict) -> dict[str, Any]:
        body = super().verdict_body(search, verdict)
        return body | repeated(body["dist"], body["received_dist"], self.r_target)

    @override
    def signed_body(self, search: SearchBody, proofs: Proofs) -> dict[str, Any]:
        return self.body(search, proofs) | {"r_target": self.r_target}

    @classmethod
    @override
    def signed_value(cls, value: object, name: str, *, in_verdict: bool) -> str:
        return binary64(value, name, or_null=in_verdict)

    @classmethod
    @override
    def repetitions(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        return repeated(body["dist"], body["received_dist"], float(body["r_target"]))

    @override
    def facts(self) -> list[tuple[str, str]]:
        return [("r_target", f"{self.r_target:.9g}")]

    @override
    def expected_rate(self, vocab_size: int) -> float:
        from pocqueue.poc.distance.random_directions import ideal_valid_rate

        return ideal_valid_rate(self.r_target, vocab_size)

    @override
    def rank(self, value: Any) -> float:
        return float(value)

    @override
    def show(self, value: Any, digits: int = 6) -> str:
        return f"{value:.{digits}f}"
