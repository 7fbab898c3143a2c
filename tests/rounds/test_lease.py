"""The lead among schedulers on a real Redis."""

from __future__ import annotations

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.scheduler import LEASE_S
from pocqueue.rounds.store import Keys
from tests.support.rounds import redis_ms
from tests.support.waiting import wait_until


def test_one_of_two_leads_and_goes_on_leading(backend: Backend) -> None:
    """The first to ask has it, as long as it renews."""
    lead = backend.store.lead
    assert lead("first", LEASE_S)
    assert not lead("second", LEASE_S)
    assert lead("first", LEASE_S)
    assert not lead("second", LEASE_S)


def test_the_lead_ends_within_its_time(backend: Backend) -> None:
    """It always has an end that is soon enough for the five seconds promised."""
    assert backend.store.lead("first", LEASE_S)
    assert 0 < int(backend.client.pttl(Keys.LEADER)) <= 1000 * LEASE_S < 5000


def test_after_a_resignation_another_leads_at_once(backend: Backend) -> None:
    """Nobody waits for a lease that was given up."""
    lead = backend.store.lead
    assert lead("first", LEASE_S)
    lead("first", 0.001)
    # It has one millisecond left; three seconds would be the lease.
    wait_until(lambda: lead("second", LEASE_S), message="the second leads")
    assert not lead("first", LEASE_S)


def test_who_does_not_lead_cannot_resign_for_the_leader(backend: Backend) -> None:
    """The lease knows its holder."""
    lead = backend.store.lead
    lead("first", LEASE_S)
    lead("second", 0.001)
    assert not lead("second", LEASE_S)
    assert lead("first", LEASE_S)


def test_the_lead_of_a_dead_scheduler_is_taken_over(backend: Backend) -> None:
    """Once its lease has run out, and not before."""
    lead = backend.store.lead
    began_ms = redis_ms(backend)
    assert lead("first", 0.3)
    wait_until(lambda: lead("second", 0.3), message="the second leads")
    assert redis_ms(backend) - began_ms >= 299
    assert not lead("first", 0.3)
