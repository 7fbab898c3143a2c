"""Which accounts train a client's task: chosen by a beacon, by what tickets prefer, and by reputation.

A ticket takes part if cos(its preferences, the task) · (1/2 + reputation/2) ≥ y, where y = H("match", beacon ‖ task ‖
ticket) / 2^256. Nobody knows the beacon before, and tickets are older, so nobody can choose its luck. All of it is
counted in integers, so that all nodes come to the same: with d = a·b the inequality is
(d · (10^6 + reputation) · 2^256)² ≥ (Y · 2 · 10^6)² · |a|² · |b|².
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pocqueue.pouw.chain.records import MINER, SUPERVISOR, TaskRecord
from pocqueue.pouw.chain.reputation import reputation
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tasks import MILLION, TaskModel
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.hashes import tagged

#: What a preference can be about; tickets and tasks have a number for each.
DIMENSIONS: Final = (
    *("image_classification", "classification", "nlp", "text_classification", "other tasks"),
    *("gpu", "no gpu"),
    *("memory below 8 GB", "memory below 32 GB", "memory of 32 GB and more"),
    *("cores below 8", "cores of 8 and more"),
    *("bandwidth below 1 Gbps", "bandwidth of 1 Gbps and more"),
    *("small models", "large models"),
)
#: Of a dimension that nothing was said of, and of one that is wanted.
_NEUTRAL, _WANTED = 1, 5
#: Types of tasks that are one and the same to a preference.
_ALIKE = {
    "image_classification": "classification",
    "classification": "image_classification",
    "nlp": "text_classification",
    "text_classification": "nlp",
}
#: From so many weights on a model is large, and from so many multiply-accumulates a part on it wants a GPU.
_LARGE_WEIGHTS, _HEAVY_WORK = 100_000, 1 << 24
#: Brackets that preferences may open; those that are known need two.
_MAX_BRACKETS = 16
_AMOUNT = re.compile(r"([0-9]{1,9})(\.[0-9]{1,9})? ?([A-Za-z]*)")
#: How many MB, or Mbps, a unit is.
_UNITS = {"mb": 1, "gb": 1000, "tb": 1_000_000, "mbps": 1, "gbps": 1000, "": 1000}

Vector = tuple[int, ...]
NEUTRAL: Final[Vector] = (_NEUTRAL,) * len(DIMENSIONS)


def matched(state: State, beacon: bytes, task: bytes, record: TaskRecord) -> frozenset[bytes]:
    """Return the accounts that train a client's task for a while.

    Args:
        state: whose live tickets of miners and supervisors are asked.
        beacon: that decides.
        task: its id.
        record: of the task.
    """
    model = decode(record.requirements, TaskModel)
    wanted = task_vector(record.task_type, model.spec(task, record.data, record.shape))
    found = set()
    for role in (MINER, SUPERVISOR):
        for ticket, one in state.live_tickets(role).items():
            drawn = int.from_bytes(tagged("match", beacon, task, ticket))
            own = preference_vector(one.preferences)
            if takes_part(own, wanted, reputation(state, one.account), drawn):
                found.add(one.account)
    if model.privacy is None:
        return frozenset(found)
    # What is sent tells something, certified or not: so no more train than may be certified.
    ranked = sorted(found, key=lambda account: tagged("private", beacon, task, account))
    return frozenset(ranked[: model.privacy.max_messages])


def takes_part(own: Sequence[int], wanted: Sequence[int], standing: int, drawn: int) -> bool:
    """Say whether cos · (1/2 + reputation/2) reaches what was drawn.

    Args:
        own, wanted: vectors of a ticket and of a task.
        standing: reputation of the account, in millionths.
        drawn: below 2^256.
    """
    dot = sum(a * b for a, b in zip(own, wanted, strict=True))
    norms = sum(a * a for a in own) * sum(b * b for b in wanted)
    return bool((dot * (MILLION + standing) << 256) ** 2 >= (drawn * 2 * MILLION) ** 2 * norms)


def task_vector(task_type: str, spec: TaskSpec) -> Vector:
    """Return what a task wants of those who train it."""
    is_large, is_heavy = spec.num_weights >= _LARGE_WEIGHTS, spec.work() >= _HEAVY_WORK
    known = task_type if task_type in _ALIKE else "other tasks"
    return _vector({
        *(known, _ALIKE.get(known, known)),
        "gpu" if is_heavy else "no gpu",
        "memory of 32 GB and more" if is_large else "memory below 8 GB",
        "cores of 8 and more" if is_heavy else "cores below 8",
        "bandwidth of 1 Gbps and more" if is_large else "bandwidth below 1 Gbps",
        "large models" if is_large else "small models",
    })  # fmt: skip


def preference_vector(preferences: bytes) -> Vector:
    """Return what a ticket prefers; what is no JSON object, or says nothing that is known, is neutral.

    So is what opens more than 16 brackets: whether a parser can read those depends on how deep its caller stands.

    Known are task_types, gpu_available, gpu_memory or memory ("32GB"), cpu_cores, bandwidth ("10Gbps") and model_size
    ("small" or "large").
    """
    if preferences.count(b"[") + preferences.count(b"{") > _MAX_BRACKETS:
        return NEUTRAL
    try:
        said = msgspec.json.decode(preferences)
    except msgspec.DecodeError:
        return NEUTRAL
    if not isinstance(said, dict):
        return NEUTRAL
    wanted: set[str] = set()
    types = said.get("task_types")
    for one in types if isinstance(types, list) else ():
        if isinstance(one, str):
            known = one if one in _ALIKE else "other tasks"
            wanted |= {known, _ALIKE.get(known, known)}
    if isinstance(has_gpu := said.get("gpu_available"), bool):
        wanted.add("gpu" if has_gpu else "no gpu")
    memory = _amount(said.get("gpu_memory", said.get("memory")))
    if memory is not None:
        wanted.add(
            "memory below 8 GB"
            if memory < 8000
            else "memory below 32 GB"
            if memory < 32_000
            else "memory of 32 GB and more"
        )
    if type(cores := said.get("cpu_cores")) is int:
        wanted.add("cores below 8" if cores < 8 else "cores of 8 and more")
    if (bandwidth := _amount(said.get("bandwidth"))) is not None:
        is_slow = bandwidth < 1000
        wanted.add("bandwidth below 1 Gbps" if is_slow else "bandwidth of 1 Gbps and more")
    if (size := said.get("model_size")) in ("small", "large"):
        wanted.add(f"{size} models")
    return _vector(wanted)


def _vector(wanted: set[str]) -> Vector:
    return tuple(_WANTED if name in wanted else _NEUTRAL for name in DIMENSIONS)


def _amount(value: Any) -> int | None:
    """Return an amount in MB or Mbps; a number alone is in GB or Gbps. None: it is none."""
    if type(value) is int:
        return value * 1000
    if not isinstance(value, str) or not (found := _AMOUNT.fullmatch(value.strip())):
        return None
    unit = _UNITS.get(found[3].lower())
    return None if unit is None else int(found[1]) * unit
