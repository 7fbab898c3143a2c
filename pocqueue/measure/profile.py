"""How fast an engine is and where its time goes: what is measured, and what follows from that.

Promises:
- Nothing is taken from a data sheet. The rate that shares are of is that of a large matrix product on
  the same device, in the model's dtype (`matrix_rate.py`).
- Work is counted as 2 FLOP for each parameter that a position is multiplied with. The table of input
  embeddings has no part in that, as inputs are embeddings; the output layer has, once a nonce, for its
  last position. Attention between positions, norms and the proof's own maths are not counted, so a share
  of the rate is on the low side.

Measuring is in `bench.py`. Imports no torch: commands read these values.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.profiled import MatmulParameters

#: Of batch sizes whose rates differ by less than this share the smallest is the best: it ends sooner when
#: a round does, and needs less memory.
SAME_RATE = 0.02


@dataclass(frozen=True, slots=True)
class MatrixRate:
    """What a device can multiply."""

    flop_per_s: float  #: of all devices of the engine together
    size: int  #: of the square matrices
    dtype: str
    num_devices: int


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One batch size."""

    batch_size: int
    batch_s: float  #: seconds of one engine call

    @property
    def nonces_per_s(self) -> float:
        return self.batch_size / self.batch_s


@dataclass(frozen=True, slots=True)
class Sweep:
    """Batch sizes against each other, at least one."""

    points: tuple[SweepPoint, ...]
    end: str  #: why there is no larger one, in words

    @property
    def best(self) -> SweepPoint:
        """The smallest batch size that is as fast as the fastest one, within `SAME_RATE`."""
        fastest = max(point.nonces_per_s for point in self.points)
        return next(p for p in self.points if p.nonces_per_s >= (1 - SAME_RATE) * fastest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was measured of one engine with one shape of batches."""

    info: EngineInfo
    batch_size: int
    seq_len: int
    engine_s: tuple[float, ...]  #: seconds a batch of whole engine calls in a loop, one a turn
    #: The same of the model alone, in turns with those; empty: unknown.
    forward_s: tuple[float, ...]
    #: Median seconds by stage, each by itself, in turns too; empty: unknown.
    stages_s: dict[str, float]
    parameters: MatmulParameters | None  #: None: unknown
    matrix: MatrixRate | None  #: None: unknown
    distances: dict[str, list[float]]  #: what the engine answered meanwhile, by block hash
    sweep: Sweep | None = None

    @property
    def batch_s(self) -> float:
        """Seconds of one engine call."""
        return statistics.median(self.engine_s)

    @property
    def nonces_per_s(self) -> float:
        """Nonces per second of the whole engine."""
        return self.batch_size / self.batch_s

    @property
    def forward_nonces_per_s(self) -> float | None:
        """Nonces per second of the model alone."""
        return self.batch_size / statistics.median(self.forward_s) if self.forward_s else None

    @property
    def ratio(self) -> float | None:
        """The engine's rate by that of the model alone: the median of what each turn gave."""
        if not self.forward_s:
            return None
        pairs = zip(self.forward_s, self.engine_s, strict=True)
        return statistics.median(forward / engine for forward, engine in pairs)

    @property
    def rest_s(self) -> float:
        """Seconds of a batch that are in no stage."""
        return max(0.0, self.batch_s - sum(self.stages_s.values()))

    @property
    def overlap_s(self) -> float:
        """Seconds by which the stages together exceed a batch: what runs beside something else."""
        return max(0.0, sum(self.stages_s.values()) - self.batch_s)

    @property
    def flop_per_nonce(self) -> int | None:
        """FLOP of one nonce, as counted here."""
        return None if self.parameters is None else self.parameters.flop(self.seq_len)

    def share_of_rate(self, nonces_per_s: float | None) -> float | None:
        """Return the share of the device's matrix rate that such a rate of nonces makes use of."""
        if nonces_per_s is None or self.flop_per_nonce is None or self.matrix is None:
            return None
        return nonces_per_s * self.flop_per_nonce / self.matrix.flop_per_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON: all but the distances."""
        fields = asdict(self)
        fields.pop("distances")
        model = fields.pop("info")
        sweep = fields.pop("sweep")
        if self.sweep is not None:
            for point, values in zip(self.sweep.points, sweep["points"], strict=True):
                values["nonces_per_s"] = point.nonces_per_s
            sweep["best_batch_size"] = self.sweep.best.batch_size
        follows = (
            "nonces_per_s",
            "forward_nonces_per_s",
            "ratio",
            "flop_per_nonce",
            "batch_s",
            "rest_s",
        )
        return {
            "model": model,
            **{name: getattr(self, name) for name in (*follows, "overlap_s")},
            "share_of_rate": self.share_of_rate(self.nonces_per_s),
            "forward_share_of_rate": self.share_of_rate(self.forward_nonces_per_s),
            **fields,
            "num_distances": sum(map(len, self.distances.values())),
            "sweep": sweep,
        }
