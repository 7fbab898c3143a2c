"""What a node notices about others, whom it tells, and the thresholds that an operator may move.

`SecuritySystem` is a dict so that `node.security_system["gradient_detector"].sensitivity = 0.8` works. Its
parts watch and tell; nobody is punished for a score. Only a failed re-execution accuses.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from pocqueue.pouw.errors import ConfigError
from pocqueue.pouw.slots.maps import SignMap

#: What can be noticed.
ALERT_TYPES = (
    *("gradient_poisoning", "byzantine_fault", "invalid_block", "double_spend"),
    *("flood", "isolated", "forged_history"),
)
#: An operator's handler has that long.
HANDLER_TIMEOUT_S = 10.0
_KEPT_ALERTS = 1000
# Alerts of the last so many seconds say how high the threat is.
_RECENT_S = 600.0
_SEVERE = {"byzantine_fault", "forged_history"}

_log = logging.getLogger(__name__)


class GradientDetector:
    """Says how far each message of a slot is from what the others say.

    Scores choose what to look at: with few miners, sparse maps and attackers who agree, honest messages can
    be the odd ones out (measured, docs/pouw.md).
    """

    def __init__(self) -> None:
        self._sensitivity = 0.5

    @property
    def sensitivity(self) -> float:
        """0 to 1; more of it lowers the threshold."""
        return self._sensitivity

    @sensitivity.setter
    def sensitivity(self, value: float) -> None:
        if isinstance(value, bool) or not 0 <= value <= 1:
            raise ConfigError("sensitivity", value, "a number from 0 to 1")
        self._sensitivity = float(value)

    @property
    def threshold(self) -> float:
        """Score above which a message is worth recomputing, in median absolute deviations."""
        return 2 + 6 * (1 - self._sensitivity)

    @staticmethod
    def scores(maps: Sequence[SignMap], num_weights: int) -> list[float]:
        """Return a score for each message of a slot, 0 where there are fewer than three.

        Args:
            maps: of the messages.
            num_weights: of their model.

        Returns:
            How many median absolute deviations (times 1.4826, so that they are standard deviations where
            the distances are normal) its cosine distance to the sum of the others is above the median.
        """
        if len(maps) < 3:
            return [0.0] * len(maps)
        # Only the sum is dense: a map of a large model has a fiftieth of its weights.
        total = np.zeros(num_weights)
        for one in maps:
            total[one.indices] += one.signs
        # Whole numbers, so exact in any order; and without BLAS, whose threads would spin for a core in each node.
        square = float(np.square(total).sum())
        distances = np.array([1 - _cosine_to_others(one, total, square) for one in maps])
        above = distances - np.median(distances)
        spread = 1.4826 * float(np.median(np.abs(above)))
        return [float(value) for value in above / max(spread, 1e-6)]


class ByzantineTolerance:
    """The share of faulty or silent supervisors at which this node raises an alarm; nothing else follows it."""

    def __init__(self) -> None:
        self._threshold = 1 / 3

    @property
    def threshold(self) -> float:
        """Above 0, at most a third: above that no committee can promise anything."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if isinstance(value, bool) or not 0 < value <= 1 / 3:
            raise ConfigError("threshold", value, "a number above 0, at most 1/3")
        self._threshold = float(value)


class SecuritySystem(dict[str, Any]):
    """Alerts of one node, with the keys ``alerts``, ``threat_level``, ``gradient_detector``, ``byzantine_tolerance``
    and ``custom_handler`` (any ``async f(alert)``, or None).

    Args:
        node_id: goes before each line of the log.
    """

    def __init__(self, node_id: str) -> None:
        super().__init__(
            alerts=collections.deque(maxlen=_KEPT_ALERTS),
            gradient_detector=GradientDetector(),
            byzantine_tolerance=ByzantineTolerance(),
            custom_handler=None,
        )
        self._node_id = node_id
        self._tasks: set[asyncio.Task[None]] = set()
        #: Alerts since the start, also those that are kept no more.
        self.num_alerts = 0

    @override
    def __getitem__(self, key: str) -> Any:
        return self._threat_level() if key == "threat_level" else super().__getitem__(key)

    @override
    def __contains__(self, key: object) -> bool:
        return key == "threat_level" or super().__contains__(key)

    def tell(
        self, kind: str, *, source_peer: str, detail: str, height: int, slot: int, evidence: str
    ) -> None:
        """Keep an alert, write it to the log, and hand it to the operator's handler. In the event loop.

        Args:
            kind: one of ALERT_TYPES.
            source_peer: public key of who it came from, in hex; empty if nobody sent it.
            evidence: id of the block, transaction or message, in hex; empty if there is none.
        """
        assert kind in ALERT_TYPES
        alert = {
            **{"type": kind, "source_peer": source_peer, "detail": detail},
            **{"height": height, "slot": slot, "time": time.time(), "evidence": evidence},
        }
        self["alerts"].append(alert)
        self.num_alerts += 1
        _log.warning("[%s] Security alert: %s_detected (%s)", self._node_id, kind, detail)
        if self["custom_handler"] is not None:
            task = asyncio.get_running_loop().create_task(self._handle(dict(alert)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what handlers are still at."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, alert: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(HANDLER_TIMEOUT_S):
                said = self["custom_handler"](alert)
                if inspect.isawaitable(said):
                    await said
        except Exception:  # noqa: BLE001 - the operator's own code
            _log.exception("[%s] The custom handler of alerts failed", self._node_id)

    def _threat_level(self) -> str:
        since = time.time() - _RECENT_S
        recent = [alert for alert in self["alerts"] if alert["time"] >= since]
        if len(recent) >= 5 or any(alert["type"] in _SEVERE for alert in recent):
            return "HIGH"
        return "MEDIUM" if recent else "LOW"


def _cosine_to_others(one: SignMap, total: npt.NDArray[np.float64], square: float) -> float:
    """Return the cosine between a map o and the sum t of the others: o·(t-o) / |o||t-o|, where o·o is its entries."""
    along, entries = float((total[one.indices] * one.signs).sum()), len(one.signs)
    length = np.sqrt(entries * (square - 2 * along + entries))
    return float((along - entries) / length) if length else 0.0
