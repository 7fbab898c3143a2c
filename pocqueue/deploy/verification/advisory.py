"""Checks that warn: what a node does not need today."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pocqueue.deploy.facts.node import EPOCH_CHECKS, GRANT_CHECKS, SETUP_URL, setup_checks
from pocqueue.deploy.preflight.checks import Check, check
from pocqueue.deploy.preflight.server import MAX_SKEW_S
from pocqueue.deploy.verification.seen import INNER_PORTS, SeenNode, WantedNode, judged

#: The shortest that a certificate is good for, and a disk will do.
MIN_CERTIFICATE_DAYS = 14
MIN_DISK_DAYS = 30
#: Free, whatever the growth was so far.
MIN_FREE_BYTES = 100_000_000_000

_advised = partial(judged, "advisory")


def advisory_checks(seen: SeenNode, wanted: WantedNode) -> Iterator[Check]:
    """Return the table."""
    yield _of_setup("grant", GRANT_CHECKS, seen, "Give it: `pocqueue deploy grant CONF`.")
    yield _of_setup("epoch", EPOCH_CHECKS, seen, "It comes with the next epoch after the grant.")

    def log_errors() -> tuple[bool, str]:
        if seen.inside is None or seen.inside.num_errors is None:
            return False, "cannot be read"
        num, last = seen.inside.num_errors, seen.inside.last_errors
        return num == 0, f"{num:,}" + (f", the last: {last[-1].strip()}" if last else "")

    yield _advised(
        "log-errors",
        log_errors,
        "no line of level=error or level=fatal since the start",
        "Some are normal while a node joins: `docker compose logs` has them all.",
    )
    yield from (_closed(port, port in seen.open_ports) for port in INNER_PORTS)
    if wanted.public_url.startswith("https:"):
        days = seen.certificate_days
        yield _advised(
            "certificate",
            lambda: (
                days is not None and days >= MIN_CERTIFICATE_DAYS,
                "none that is trusted" if days is None else f"{days:.0f} days",
            ),
            f"good for {MIN_CERTIFICATE_DAYS} days",
            "Renew it.",
        )
    yield _advised(
        "clock",
        lambda: (abs(seen.skew_s) <= MAX_SKEW_S, f"{seen.skew_s:+.0f} s"),
        f"within {MAX_SKEW_S} s of this machine",
        "Set the clocks: `timedatectl set-ntp true`, here or there.",
    )

    def disk() -> tuple[bool, str]:
        free = f"{seen.free_bytes / 1e9:,.0f} GB free"
        if seen.daily_bytes is None or seen.daily_bytes <= 0:
            return seen.free_bytes >= MIN_FREE_BYTES, free
        days = seen.free_bytes / seen.daily_bytes
        is_good = seen.free_bytes >= MIN_FREE_BYTES and days >= MIN_DISK_DAYS
        return is_good, f"{free}, {days:,.0f} days at {seen.daily_bytes / 1e9:,.1f} GB a day"

    yield _advised(
        "disk-forecast",
        disk,
        f"{MIN_FREE_BYTES / 1e9:.0f} GB and {MIN_DISK_DAYS} days",
        "Make room, or use a larger disk: the chain's data grows.",
    )


def _closed(port: int, is_open: bool) -> Check:
    return check(
        "advisory",
        f"closed-{port}",
        not is_open,
        "open" if is_open else "closed",
        "closed from here",
        "Anybody reaches it: run phase 6 again, or close it in the provider's firewall.",
        warn=True,
    )


def _of_setup(name: str, checks: frozenset[str], seen: SeenNode, remedy: str) -> Check:
    """Return the line of those checks of the node's own report that come later."""

    def judge() -> tuple[bool, str]:
        found = [each for each in setup_checks(seen.answers[SETUP_URL]) if each.name in checks]
        bad = [
            f"{each.name} {each.status}: {each.message}" for each in found if each.status != "PASS"
        ]
        shown = f"{len(found)} PASS" if found else "the report has none of it"
        return bool(found) and not bad, "; ".join(bad) or shown

    return _advised(name, judge, "PASS of the node's own report", remedy)
