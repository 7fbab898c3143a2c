"""Shares of a beacon make it, whoever gives wrong ones."""

from __future__ import annotations

import pytest

from pocqueue.pouw.flow.beacons import BeaconShares
from pocqueue.pouw.slots import bls
from tests.pouw.flow.committees import dealt
from tests.pouw.support import account

_DEALT = dealt([account(name) for name in ("first", "second", "third", "fourth")])
_DIGEST = b"d" * 32
_SHARES = [share.sign(_DIGEST) for share in _DEALT.shares]
_INFINITY = b"\xc0" + bytes(95)


def test_any_three_of_four_make_the_same_beacon() -> None:
    """And two make none."""
    found = set()
    for left_out in range(4):
        shares = BeaconShares(_DEALT.committee)
        for place in {*range(4)} - {left_out}:
            assert shares.combined(_DIGEST) is None
            assert shares.add(place, _SHARES[place])
        found.add(shares.combined(_DIGEST))
    [beacon] = found
    assert beacon is not None
    assert bls.verify(_DEALT.committee.group_key, _DIGEST, beacon)


@pytest.mark.parametrize(
    "wrong", [_INFINITY, bytes(96), _DEALT.shares[0].sign(b"e" * 32), _SHARES[1]]
)
def test_a_wrong_share_is_left_out_and_its_member_known(wrong: bytes) -> None:
    """One of another slot, of another member, the point at infinity, or no point; a second one of it is not taken."""
    shares = BeaconShares(_DEALT.committee)
    for place, share in enumerate((wrong, _SHARES[1], _SHARES[2])):
        assert shares.add(place, share)
    assert shares.combined(_DIGEST) is None
    assert shares.liars == {0}
    assert not shares.add(0, _SHARES[0])
    assert not shares.add(1, _SHARES[1])
    assert shares.add(3, _SHARES[3])
    beacon = shares.combined(_DIGEST)
    assert beacon is not None
    assert bls.verify(_DEALT.committee.group_key, _DIGEST, beacon)
