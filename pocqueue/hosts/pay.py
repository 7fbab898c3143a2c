"""What an attempt earns. Whole micro-HYPER: 10,000 a second are the public 0.01 HYPER."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pocqueue.hosts.leases import Outcome

MICRO_PER_HYPER: Final = 1_000_000
#: Of these the node has done what was asked of it.
PAID: Final = frozenset({Outcome.COMPLETED, Outcome.CANCELLED})


def most_paid_s(spec: Mapping[str, Any], timeout_s: int) -> int:
    """Return the most seconds that a job pays for: its time-out, or less where its `spec` says `paid_s`.

    A job of the server's own has time to spare which is not to be earned by waiting.
    """
    return min(timeout_s, int(spec.get("paid_s", timeout_s)))


def paid_seconds(
    sent_ms: int | None, ended_ms: int, most_s: int, claimed_ms: int | None = None
) -> int:
    """Return the whole seconds that are paid for.

    That is the time by the server's clock from the message (or the node's word that it has begun) to the result, at most `most_s`. A node that
    says less is believed: its result may have waited for a connection. One that says more is not.

    Args:
        most_s: see `most_paid_s`.
        sent_ms: when the job went to the node; None: never, which is worth nothing.
        claimed_ms: how long it took, as the node says; None: it says nothing.
    """
    if sent_ms is None:
        return 0
    measured_ms = max(0, ended_ms - sent_ms)
    if claimed_ms is not None:
        measured_ms = min(measured_ms, max(0, claimed_ms))
    return min(measured_ms // 1000, most_s)


def earned(
    outcome: Outcome | None,
    *,
    sent_ms: int | None,
    ended_ms: int | None,
    most_s: int,
    claimed_ms: int | None,
    rate_micro: int,
) -> int:
    """Return what an attempt has earned, in micro-HYPER; 0 while it is open.

    Args:
        outcome, sent_ms, ended_ms, claimed_ms: of the attempt.
        most_s: see `most_paid_s`.
        rate_micro: of the job; `rate_micro` is the pay for a second.
    """
    if outcome not in PAID or ended_ms is None:
        return 0
    return rate_micro * paid_seconds(sent_ms, ended_ms, most_s, claimed_ms)


def hyper(micro: int) -> str:
    """Write an amount exactly, in HYPER: ``0.05``, ``-1.000001``."""
    whole, part = divmod(abs(micro), MICRO_PER_HYPER)
    fraction = f"{part:06d}".rstrip("0")
    return f"{'-' * (micro < 0)}{whole}{'.' * bool(fraction)}{fraction}"
