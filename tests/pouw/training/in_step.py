"""Miners of one task in step, all in this process, as certificates would say it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocqueue.pouw.slots.maps import SignMap, decode_map
from pocqueue.pouw.slots.task import ARCHITECTURES, LAP, LapSlot, TaskSpec
from pocqueue.pouw.slots.weights import first_weights, next_weights, weights_bytes
from pocqueue.pouw.training.iterate import iterate
from pocqueue.pouw.training.messages import IterationResult
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.samples import Samples


def task_of(architecture: str, *, batch_size: int = 64) -> TaskSpec:
    """Return a task as a client gets it who says nothing but the architecture."""
    data, hidden, learning_rate, tau = ARCHITECTURES[architecture]
    return TaskSpec(b"t" * 32, architecture, hidden, data, batch_size, learning_rate, tau)


@dataclass
class InStep:
    """So many miners; everything they send is certified.

    The last `num_liars` of them send the opposite of what they found.
    """

    task: TaskSpec
    num_miners: int
    num_liars: int = 0
    slot: int = 0
    laps: dict[bytes, list[LapSlot]] = field(default_factory=dict)  #: of this lap, by miner
    results: dict[bytes, IterationResult] = field(default_factory=dict)  #: of the last slot
    samples: Samples | None = None  #: of a client's own data

    def __post_init__(self) -> None:
        self.model = Model(self.task, self.samples)
        self.weights = first_weights(self.task)
        self.miners = [bytes([2, number]) + bytes(31) for number in range(self.num_miners)]

    @property
    def theta(self) -> bytes:
        """Return the weights at the start of the next slot."""
        return weights_bytes(self.weights)

    def run(self, num_slots: int) -> None:
        """Go on by so many slots."""
        for _ in range(num_slots):
            self._step()

    def correct(self) -> float:
        """Return the share of samples outside the training part that the model is right about."""
        parts = (self.model.samples.val, self.model.samples.test)
        right = sum(self.model.correct(self.weights, part) for part in parts)
        return right / sum(len(part.y) for part in parts)

    def _step(self) -> None:
        if self.slot % LAP == 0:
            self.laps = {miner: [] for miner in self.miners}
            self.results = {}
        theta = self.theta
        for miner in self.miners:
            before = self.results.get(miner)
            residual = None if before is None else before.residual
            result = iterate(
                self.model, theta, residual, slot=self.slot, miner=miner, lane=0, parts=1
            )
            self.results[miner] = result
            self.laps[miner].append(LapSlot(self.slot, theta, result.map, 1))
        cap = self.task.cap
        maps = [decode_map(r.map, self.task.num_weights, cap) for r in self.results.values()]
        honest, lies = (
            maps[: self.num_miners - self.num_liars],
            maps[self.num_miners - self.num_liars :],
        )
        lies = [SignMap(lie.indices, -lie.signs) for lie in lies]
        self.weights = next_weights(self.task, self.weights, [*honest, *lies])
        self.slot += 1
