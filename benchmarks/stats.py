"""Medians and their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing, in one unit."""

    values: Sequence[float]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "unit": self.unit,
        }

    @override
    def __str__(self) -> str:
        return (
            f"{self.median:,.4g} {self.unit} "
            f"({min(self.values):,.4g} to {max(self.values):,.4g}, {len(self.values)} runs)"
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of the values do not exceed: one of them, as in nearest rank.

    Args:
        values: one or more, in any order.
        percent: above 0, 100 at most.
    """
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, against what, and what was asked for."""

    name: str
    measured: Sample
    against: Sample | None
    against_name: str
    #: The number that the target speaks of: a ratio, or the median itself.
    value: float
    target: str
    reached: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured.to_dict(),
            "against": None if self.against is None else self.against.to_dict(),
            "against_name": self.against_name,
            "value": self.value,
            "target": self.target,
            "reached": self.reached,
        }
