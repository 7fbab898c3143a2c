"""Buckets, points and bans; the clock is an argument."""

from __future__ import annotations

from random import Random

import pytest

from pocqueue.pouw.p2p.frames import LIMITS, UNASKED, Kind, Limit
from pocqueue.pouw.p2p.limits import BAN_S, Conduct, Rates, is_loopback

ACCOUNT = b"\x02" * 33


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Never more than the burst, however long nothing came."""
    rates, limit = Rates(), LIMITS[Kind.RECORD]
    assert [rates.allows(Kind.RECORD, 5.0) for _ in range(limit.burst + 1)].count(True) == (
        limit.burst
    )
    got = sum(rates.allows(Kind.RECORD, 6.0) for _ in range(limit.burst))
    assert got == limit.per_second
    assert sum(rates.allows(Kind.RECORD, 1e6) for _ in range(2 * limit.burst)) == limit.burst
    assert rates.allows(Kind.TX, 6.0)


def test_a_flood_is_held_against_a_peer_once_a_second() -> None:
    """And for each kind of its own."""
    rates = Rates()
    assert [rates.is_flood(Kind.TX, at) for at in (0, 0.5, 0.99, 1.0, 1.5)] == [
        *(True, False, False, True, False)
    ]
    assert rates.is_flood(Kind.PING, 0.5)


def test_a_hundred_points_ban_for_ten_minutes() -> None:
    """Then everything is forgotten."""
    conduct = Conduct()
    assert not conduct.charge(ACCOUNT, 99, 0.0)
    assert not conduct.is_banned(ACCOUNT, 0.0)
    assert conduct.charge(ACCOUNT, 1, 59.9)
    assert conduct.is_banned(ACCOUNT, 59.8 + BAN_S)
    assert not conduct.is_banned(b"other", 60.0)
    assert not conduct.is_banned(ACCOUNT, 59.9 + BAN_S)
    assert not conduct.charge(ACCOUNT, 99, 60.0 + BAN_S)


def test_points_are_forgotten_one_a_minute() -> None:
    """Ninety of them after an hour and a half; what is over of a minute still counts."""
    conduct = Conduct()
    conduct.charge(ACCOUNT, 90, 0.0)
    assert not conduct.charge(ACCOUNT, 9, 90.0)
    assert not conduct.charge(ACCOUNT, 1, 119.0)
    assert conduct.charge(ACCOUNT, 2, 120.0)
    other = Conduct()
    other.charge(ACCOUNT, 90, 0.0)
    assert not other.charge(ACCOUNT, 99, 90 * 60.0)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.0.1", False),
        ("2001:db8::1", False),
        ("localhost", False),
    ],
)
def test_addresses_of_this_machine_are_not_banned(host: str, is_ours: bool) -> None:
    """They are everybody's here."""
    conduct = Conduct()
    assert is_loopback(host) is is_ours
    assert conduct.charge(host, 100, 0.0) is not is_ours
    conduct.ban(host, 0.0)
    assert conduct.is_banned(host, 1.0) is not is_ours


def test_so_many_are_remembered() -> None:
    """A new one takes the place of the one that was touched longest ago."""
    conduct = Conduct()
    conduct.charge(ACCOUNT, 99, 0.0)
    for i in range(10_000):
        conduct.charge(b"%d" % i, 1, 0.0)
    assert not conduct.charge(ACCOUNT, 99, 0.0)
    assert not conduct.charge(b"0", 98, 0.0)
    assert conduct.charge(b"9999", 99, 0.0)


@pytest.mark.parametrize(
    ("kind", "limits"), [(Kind.TX, LIMITS), (Kind.BLOCK, LIMITS), (Kind.BLOCK, UNASKED)]
)
def test_what_is_given_as_fast_as_allowed_is_no_flood(kind: Kind, limits: dict[int, Limit]) -> None:
    """However it is bunched on its way, by up to ten seconds."""
    given, taken = Rates(0.5, limits), Rates(limits=limits)
    rng = Random(1)  # noqa: S311 - the same in each run
    sent_s = [tick / 1000 for tick in range(30_000) if given.allows(kind, tick / 1000)]
    assert len(sent_s) >= limits[kind].burst // 2 + 29 * limits[kind].per_second
    came_s = 0.0
    for at_s in sent_s:
        came_s = max(came_s, at_s + rng.choice([0.0, 9.9]))
        assert taken.allows(kind, came_s)
