"""Dealing: shares add up to a key that nobody has, and nobody can deal, seal or show a wrong one unnoticed."""

from __future__ import annotations

import itertools
import sys

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.records import Candidate, KeyGeneration
from pocqueue.pouw.committee.dealing import Dealer, are_commitments, is_share, sum_of
from pocqueue.pouw.committee.quorum import quorum
from pocqueue.pouw.committee.sealing import SealKey, is_seal_key
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import encode
from tests.pouw.support import account, key

# It raises the limit for the whole process, where deep JSON then ends this very process.
_LIMIT = sys.getrecursionlimit()
from py_ecc.bls import G2ProofOfPossession as Judge  # noqa: E402

sys.setrecursionlimit(_LIMIT)

_NETWORK, _DIGEST = b"n" * 32, b"d" * 32
_INFINITE = b"\xc0" + bytes(47)


def _dealers(num: int) -> list[Dealer]:
    """Return dealers in the order of their accounts."""
    names = sorted((f"dealer {number}" for number in range(num)), key=account)
    return [Dealer(key(name), _NETWORK) for name in names]


def _generation(num: int, height: int = 7) -> KeyGeneration:
    accounts = sorted(account(f"dealer {number}") for number in range(num))
    candidates = tuple(
        Candidate(account, account[:32], dealer.seal_key)
        for account, dealer in zip(accounts, _dealers(num), strict=True)
    )
    tickets = tuple(candidate.ticket for candidate in candidates)
    return KeyGeneration(3, height, candidates, quorum(num), tickets)


@pytest.mark.parametrize("num", [4, 5, 7])
def test_shares_make_the_groups_signature(num: int) -> None:
    """Any t of them, of whoever; not fewer; and another library says that it is good."""
    generation, dealers = _generation(num), _dealers(num)
    deals = {place: dealer.deal(generation) for place, dealer in enumerate(dealers)}
    group = sum_of(list(deals.values()))
    shares = {}
    for place, dealer in enumerate(dealers):
        share = dealer.share(generation, deals, {})
        assert share is not None
        assert share.public_key == bls.value_at(group, place + 1)
        shares[place + 1] = share.sign(_DIGEST)
    wanted = generation.threshold
    some = list(itertools.combinations(shares, wanted))[:: 1 if num < 7 else 5]
    signatures = {bls.combine({number: shares[number] for number in those}) for those in some}
    (signature,) = signatures
    assert bls.verify(group[0], _DIGEST, signature)
    too_few = bls.combine({number: shares[number] for number in range(1, wanted)})
    assert not bls.verify(group[0], _DIGEST, too_few)
    if num == 4:
        assert Judge.Verify(group[0], _DIGEST, signature)


def test_whoever_is_started_again_deals_the_same() -> None:
    """All bytes of it; for another try, and for other candidates, it is another polynomial."""
    generation = _generation(4)
    first, again = (_dealers(4)[1].deal(generation) for _ in range(2))
    assert encode(first) == encode(again)
    later = _dealers(4)[1].deal(_generation(4, height=17))
    fewer = msgspec.structs.replace(generation, candidates=generation.candidates[:3])
    assert not {*first.commitments} & {*later.commitments, *_dealers(4)[1].deal(fewer).commitments}


def test_a_share_is_for_one_candidate() -> None:
    """It cannot be read by another one, nor passed off as one of another dealer or try."""
    generation, dealers = _generation(4), _dealers(4)
    deal = dealers[0].deal(generation)
    shares = [dealers[place].opened(generation, 0, deal) for place in range(4)]
    assert None not in shares
    assert len({*shares}) == 4
    exchanged = msgspec.structs.replace(
        deal, shares=(b"", deal.shares[2], deal.shares[1], deal.shares[3])
    )
    assert [dealers[place].opened(generation, 0, exchanged) is None for place in range(4)] == [
        *(False, True, True, False)
    ]
    assert dealers[2].opened(generation, 1, deal) is None
    assert dealers[2].opened(_generation(4, height=8), 0, deal) is None


def test_a_share_that_was_not_committed_to_is_seen() -> None:
    """Though it was sealed well; what the dealer shows instead is taken if it is right."""
    generation, dealers = _generation(4), _dealers(4)
    deals = {place: dealer.deal(generation) for place, dealer in enumerate(dealers)}
    other = dealers[0].deal(_generation(4, height=8))
    wrong = msgspec.structs.replace(deals[0], commitments=other.commitments)
    assert dealers[3].opened(generation, 0, wrong) is None
    assert dealers[3].share(generation, {}, {}) is None
    sealed = msgspec.structs.replace(deals[0], shares=(b"", *[bytes(48)] * 3))
    assert dealers[3].share(generation, {**deals, 0: sealed}, {}) is None
    answer = dealers[0].answer(generation, 3)
    assert is_share(deals[0].commitments, 4, answer.share)
    assert not is_share(deals[0].commitments, 3, answer.share)
    honest = dealers[3].share(generation, deals, {})
    shown = dealers[3].share(generation, {**deals, 0: sealed}, {(0, 3): answer})
    assert shown == honest


@settings(max_examples=50, deadline=None)
@given(share=st.one_of(st.binary(min_size=32, max_size=32), st.just(bls.ORDER.to_bytes(32))))
def test_no_other_number_is_a_share(share: bytes) -> None:
    """Neither zero nor one that is too large."""
    commitments = _dealers(4)[0].deal(_generation(4)).commitments
    assert not is_share(commitments, 1, share)
    assert not is_share(commitments, 1, bytes(32))


@settings(max_examples=50, deadline=None)
@given(sealed=st.binary(max_size=128))
def test_nothing_else_opens(sealed: bytes) -> None:
    """Whatever is sealed: it is a reason to complain, and no error."""
    generation, dealers = _generation(4), _dealers(4)
    deal = dealers[0].deal(generation)
    forged = msgspec.structs.replace(deal, shares=(b"", sealed, *deal.shares[2:]))
    assert dealers[1].opened(generation, 0, forged) is None


def test_commitments_are_points_that_promise_points() -> None:
    """No others, not infinity, and none of which a candidate's share would be zero."""
    deal = _dealers(4)[0].deal(_generation(4))
    assert are_commitments(deal.commitments, 4)
    for wrong in (bytes(48), _INFINITE, b"\xff" * 48):
        assert not are_commitments((*deal.commitments[:2], wrong), 4)
    # 6 - 5x + x^2 is zero at 2 and 3.
    coefficients = (6, bls.ORDER - 5, 1)
    zero_at_2 = tuple(bls.SecretKey(each).public_key for each in coefficients)
    assert are_commitments(zero_at_2, 1)
    assert not are_commitments(zero_at_2, 2)


def test_polynomials_that_cancel_out_have_no_key() -> None:
    """Their sum is infinity, by which anybody could sign."""
    deal = _dealers(4)[0].deal(_generation(4))
    one, minus_one = bls.SecretKey(1).public_key, bls.SecretKey(bls.ORDER - 1).public_key
    both = [msgspec.structs.replace(deal, commitments=(each,)) for each in (one, minus_one)]
    with pytest.raises(SlotError, match="infinity"):
        sum_of(both)


def test_keys_of_small_order_are_no_seal_keys() -> None:
    """With them everybody would have the same secret."""
    assert is_seal_key(SealKey(b"s" * 32).public_key)
    order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
    for small in (bytes(32), (1).to_bytes(32, "little"), bytes.fromhex(order_8)):
        assert not is_seal_key(small)


def test_both_ends_have_the_same_secret_and_nobody_else() -> None:
    """A seal is for one pair of keys and one context."""
    first, second, third = (SealKey(letter * 32) for letter in (b"a", b"b", b"c"))
    sealed = first.seal(b"s" * 32, second.public_key, b"context")
    assert len(sealed) == 48
    assert second.open(sealed, first.public_key, b"context") == b"s" * 32
    assert second.open(sealed, first.public_key, b"another") is None
    assert second.open(sealed, third.public_key, b"context") is None
    assert third.open(sealed, first.public_key, b"context") is None
