"""What a miner shows of its noise is for the members alone, and cannot be another one's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.noise import check_sealed, open_noise, seal_noise
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.noise import SealedNoise
from pocqueue.pouw.wire.slots import noise_digest
from tests.pouw.support import group_key, key

NETWORK, TASK = b"n" * 32, b"t" * 32
DEALERS = [Dealer(key(name), NETWORK) for name in ("first", "second", "third")]
SECRET = group_key("miner's")
PLACE = (NETWORK, TASK, 7, 1)


def _sealed(*, slot: int = 7) -> SealedNoise:
    keys = [DEALERS[0].seal_key, None, DEALERS[2].seal_key]
    return seal_noise(key("miner"), SECRET, (NETWORK, TASK, slot, 1), 3, keys)


def test_each_member_finds_the_signature() -> None:
    """The same for all, in the same bytes each time, and it is the miner's for this message."""
    sealed = _sealed()
    assert decode(encode(sealed), SealedNoise) == sealed == _sealed()
    check_sealed(sealed)
    found = [open_noise(sealed, member, DEALERS[member], SECRET.public_key) for member in range(3)]
    signature = SECRET.sign(noise_digest(*PLACE))
    assert found == [signature, None, signature]
    assert bls.verify(SECRET.public_key, noise_digest(*PLACE), signature)
    assert signature not in encode(sealed)


def test_nobody_else_finds_anything() -> None:
    """Not another member in that one's place, nor a place that there is not, nor with another miner's key."""
    sealed = _sealed()
    assert open_noise(sealed, 0, DEALERS[1], SECRET.public_key) is None
    assert open_noise(sealed, 2, DEALERS[0], SECRET.public_key) is None
    assert open_noise(sealed, 3, DEALERS[0], SECRET.public_key) is None
    assert open_noise(sealed, 0, DEALERS[0], group_key("other").public_key) is None


def test_what_is_of_another_message_is_nothing() -> None:
    """Nor a key with which everybody could read it; and what the miner has not signed is refused."""
    for changed in (replace(_sealed(), slot=8), replace(_sealed(), seal_key=bytes(32))):
        assert open_noise(changed, 0, DEALERS[0], SECRET.public_key) is None
        with pytest.raises(SlotError, match=r"^signature: sealed noise is not by"):
            check_sealed(changed)
    other = replace(_sealed(), sealed=_sealed(slot=8).sealed)
    assert open_noise(other, 0, DEALERS[0], SECRET.public_key) is None
