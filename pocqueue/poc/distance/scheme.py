"""The distance scheme, as rounds and HTTP see it: a value is a distance in [0, 2], kept below `r_target`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from pocqueue.poc.canonical import binary64
from pocqueue.poc.distance.data import (
    OTHER_ARITHMETIC,
    finite_or_none,
    is_mismatch,
    is_valid,
    repeated,
)
from pocqueue.poc.distance.random_directions import random_spread
from pocqueue.poc.fields import Allowed, Text
from pocqueue.poc.fraud import PROBABILITY_MISMATCH
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.poc.proofs import Proofs, Verdict
from pocqueue.poc.scheme import ProofScheme
from pocqueue.poc.search import MAX_NODE_COUNT, BlockHeight, SearchBody

#: Of the spread of random directions' distances: how far the distances of honest nodes are apart at most. Measured
#: between torch and vLLM, bfloat16 and float32, on the CPU: a standard deviation of 0.01 with the embedded model
#: (at most 0.042) and of 0.025 with one of 16 layers (at most 0.086); up to 0.043 fewer than 5e-4 are beyond this.
#: A made-up distance is beyond it from the nonce's own in 96 to 97 %.
HONEST_SPREAD = 0.15

RTarget = Annotated[
    float,
    Field(gt=0, description="Distance that a nonce has to stay below; above 2 all of them do."),
    Allowed("a number above 0"),
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
    def honest_difference(self, vocab_size: int) -> float:
        return HONEST_SPREAD * random_spread(vocab_size)

    @override
    def is_possible(self, value: Any) -> bool:
        return bool(0 <= value <= 2)

    @override
    def refusal(self, value: Any) -> str | None:
        if self.is_possible(value) and self.is_kept(value):
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
    def notes(self) -> list[str]:
        above = f"r_target is {self.r_target:.9g}, and no distance is above 2: every nonce is valid"
        return [above] if self.r_target > 2 else []

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


#: Nonces of one `ProofBody`. A round of 330 seconds finds fewer valid ones.
MAX_NONCES = 100_000

#: A search and what it found, for the examples of documents.
SEARCH_EXAMPLE: dict[str, Any] = {
    "block_hash": "0x3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
    "block_height": 1458,
    "public_key": "gonka1qy352euf40x77qfrg4ncn27dauqjx3t83x4umm",
    "node_id": 0,
    "node_count": 1,
    "batch_size": 100,
    "r_target": 1.4013564660458173,
    "fraud_threshold": 1e-7,
}
BATCH_EXAMPLE: dict[str, Any] = {
    **{name: SEARCH_EXAMPLE[name] for name in ("public_key", "block_hash", "block_height")},
    **{"nonces": [3, 17], "dist": [1.3801, 1.3994], "node_id": 0},
}

Nonce = Annotated[int, Field(ge=0, le=MAX_NONCE)]


class ProofBody(BaseModel):
    """Somebody's proof as it comes in over HTTP, to be recomputed for the block of the round at hand."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH_EXAMPLE]})

    public_key: Text
    block_hash: Text
    block_height: BlockHeight
    nonces: list[Nonce] = Field(max_length=MAX_NONCES)
    #: Claimed distances, one a nonce.
    dist: list[float] = Field(max_length=MAX_NONCES)
    node_id: int = Field(default=0, ge=0, le=MAX_NODE_COUNT)
