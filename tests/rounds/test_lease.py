"""The lead among schedulers on a real Redis."""

from __future__ import annotations

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.scheduler import LEASE_S, LeaderLease
from pocqueue.rounds.store import Keys
from tests.support.rounds import redis_ms
from tests.support.waiting import wait_until


def _lease(backend: Backend, lease_s: float = LEASE_S) -> LeaderLease:
    return LeaderLease(backend.client, backend.url, lease_s)


def test_one_of_two_leads_and_goes_on_leading(backend: Backend) -> None:
    """The first to ask has it, as long as it renews."""
    first, second = _lease(backend), _lease(backend)
    assert first.id != second.id
    assert first.hold()
    assert not second.hold()
    assert first.hold()
    assert not second.hold()


def test_the_lead_ends_within_its_time(backend: Backend) -> None:
    """It always has an end that is soon enough for the five seconds promised."""
    assert _lease(backend).hold()
    assert 0 < int(backend.client.pttl(Keys.LEADER)) <= 1000 * LEASE_S < 5000


def test_after_a_resignation_another_leads_at_once(backend: Backend) -> None:
    """Nobody waits for a lease that was given up."""
    first, second = _lease(backend), _lease(backend)
    assert first.hold()
    first.resign()
    # It has one millisecond left; three seconds would be the lease.
    wait_until(second.hold, timeout_s=1.0, message="the second leads")
    assert not first.hold()


def test_who_does_not_lead_cannot_resign_for_the_leader(backend: Backend) -> None:
    """The lease knows its holder."""
    first, second = _lease(backend), _lease(backend)
    first.hold()
    second.resign()
    assert not second.hold()
    assert first.hold()


def test_the_lead_of_a_dead_scheduler_is_taken_over(backend: Backend) -> None:
    """Once its lease has run out, and not before."""
    first, second = _lease(backend, 0.3), _lease(backend, 0.3)
    began_ms = redis_ms(backend)
    assert first.hold()
    wait_until(second.hold, timeout_s=5.0, message="the second leads")
    assert redis_ms(backend) - began_ms >= 299
    assert not first.hold()
