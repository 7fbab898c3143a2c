"""Valid records for tests, each with any field changed: ``make_spec(window_s=1.0)``."""

from __future__ import annotations

from typing import Any

from pocqueue.engine.base import EngineInfo
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import OutstandingRange, RoundStatus
from pocqueue.rounds.spec import RoundSpec, RoundState

FINGERPRINT = "0123456789abcdef" * 4
OTHER_FINGERPRINT = "fedcba9876543210" * 4
#: Some instant, in milliseconds, of the clock that records are stamped with.
NOW_MS = 1_800_000_000_000


def make_spec(**changes: Any) -> RoundSpec:
    """Make a specification: batches of 10 nonces of 8 positions, half a minute long."""
    fields: dict[str, Any] = {
        "block_hash": "block-1",
        "block_height": 7,
        "public_key": "key-1",
        "r_target": 1.0,
        "window_s": 30.0,
        "seq_len": 8,
        "batch_size": 10,
        "model": "twin",
        "model_fingerprint": FINGERPRINT,
    }
    return RoundSpec.build(**(fields | changes))


def make_info(**changes: Any) -> EngineInfo:
    """Make the description of a deployed model that runs `make_spec`'s rounds."""
    fields: dict[str, Any] = {
        "engine": "twin",
        "model": "twin",
        "fingerprint": FINGERPRINT,
        "device": "cpu",
        "device_name": "a twin in memory",
        "dtype": "float32",
        "hidden_size": 16,
        "vocab_size": 32,
        "max_seq_len": 1024,
    }
    return EngineInfo(**(fields | changes))


def make_gpu(queue: str = "gpu0", rate: float | None = 100.0, **changes: Any) -> Gpu:
    """Make a live GPU that does `rate` nonces a second of `make_spec`'s shape; None: not known."""
    fields: dict[str, Any] = {
        "queue": queue,
        "worker": f"worker-of-{queue}",
        "host": "host-1",
        "pid": 4711,
        "info": make_info(),
        "ttl_ms": 4000,
        "rates": {} if rate is None else {"8x10": rate},
        "seen_ms": NOW_MS,
        "now_ms": NOW_MS,
    }
    fields |= changes
    # A GPU that never did better than it does now, unless told otherwise.
    return Gpu(**({"best_rates": fields["rates"]} | fields))


def make_status(round_id: str = "round-1", **changes: Any) -> RoundStatus:
    """Make an active round that began now and to which nothing was given yet."""
    spec = changes.pop("spec", None) or make_spec()
    created_ms = changes.get("created_ms", NOW_MS)
    fields: dict[str, Any] = {
        "round_id": round_id,
        "spec": spec,
        "state": RoundState.ACTIVE,
        "reason": "",
        "created_ms": created_ms,
        "deadline_ms": created_ms + round(spec.window_s * 1000),
        "ended_ms": 0,
        "now_ms": NOW_MS,
        "next_index": 0,
        "checked": 0,
        "valid": 0,
        "batches": 0,
        "nonfinite": 0,
        "late_batches": 0,
        "abandoned": 0,
        "ranges_made": 0,
        "ranges_returned": 0,
        "vtime": None,
    }
    return RoundStatus(**(fields | changes))


def make_range(**changes: Any) -> OutstandingRange:
    """Make a range of 100 nonces that gpu0 was given just now."""
    fields: dict[str, Any] = {
        "round_id": "round-1",
        "range_id": 1,
        "start": 0,
        "stop": 100,
        "done": 0,
        "queue": "gpu0",
        "worker": "worker-of-gpu0",
        "attempts": 0,
        "assigned_ms": NOW_MS,
    }
    return OutstandingRange(**(fields | changes))
