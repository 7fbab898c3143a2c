"""Signatures are those of the draft, as another library has them; what is no key or signature is refused."""

from __future__ import annotations

import copy
import hashlib
import itertools
import random
import sys

import pytest

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import tagged

# It raises the limit for the whole process, where deep JSON then ends this very process.
_LIMIT = sys.getrecursionlimit()
from py_ecc.bls import G2ProofOfPossession as Judge  # noqa: E402
from py_ecc.bls.g2_primitives import G2_to_signature, subgroup_check  # noqa: E402
from py_ecc.bls.point_compression import compress_G1, decompress_G2  # noqa: E402
from py_ecc.fields import optimized_bls12_381_FQ as FQ  # noqa: E402
from py_ecc.optimized_bls12_381 import Z2, field_modulus  # noqa: E402

sys.setrecursionlimit(_LIMIT)

_DIGEST = hashlib.sha256(b"a slot").digest()
_KEY = bls.SecretKey.from_seed(b"one seed of 32 bytes and a bit more")
_ACCOUNT = b"\x02" + bytes(32)
_INFINITE_KEY = b"\xc0" + bytes(47)
_INFINITE_SIGNATURE = b"\xc0" + bytes(95)


@pytest.mark.parametrize("seed", [bytes(32), b"s" * 77])
def test_another_library_makes_the_same(seed: bytes) -> None:
    """Key, signature and proof of possession have the bytes that py_ecc gives them."""
    scalar = Judge.KeyGen(seed)
    key = bls.SecretKey.from_seed(seed)
    assert key == bls.SecretKey(scalar)
    assert key.public_key == Judge.SkToPk(scalar)
    assert key.sign(_DIGEST) == Judge.Sign(scalar, _DIGEST)
    proved = tagged("possession", _ACCOUNT, key.public_key)
    assert key.prove_possession(_ACCOUNT) == Judge._CoreSign(scalar, proved, Judge.POP_TAG)


def test_a_signature_is_one_keys_for_one_digest() -> None:
    """Neither another key nor another digest nor a proof of possession passes for it."""
    signature, other = _KEY.sign(_DIGEST), bls.SecretKey(7)
    assert bls.verify(_KEY.public_key, _DIGEST, signature)
    assert not bls.verify(other.public_key, _DIGEST, signature)
    assert not bls.verify(_KEY.public_key, bytes(32), signature)
    assert not bls.verify(_KEY.public_key, _DIGEST, other.sign(_DIGEST))
    proof = _KEY.prove_possession(_ACCOUNT)
    assert bls.verify_possession(_KEY.public_key, _ACCOUNT, proof)
    assert not bls.verify_possession(other.public_key, _ACCOUNT, proof)
    assert not bls.verify_possession(_KEY.public_key, _ACCOUNT, _KEY.sign(_KEY.public_key))


def test_signatures_are_checked_together() -> None:
    """All of them have to be right: neither exchanged ones nor wrong ones with the right sum pass."""
    other = hashlib.sha256(b"another slot").digest()
    first, second = _KEY.sign(_DIGEST), _KEY.sign(other)
    assert bls.verify_all(_KEY.public_key, ((_DIGEST, first), (other, second)))
    assert not bls.verify_all(_KEY.public_key, ((_DIGEST, second), (other, first)))
    more, less = bls.SecretKey(_KEY.scalar + 5), bls.SecretKey(_KEY.scalar - 5)
    shifted = ((_DIGEST, more.sign(_DIGEST)), (_DIGEST, less.sign(_DIGEST)))
    assert not bls.verify_all(_KEY.public_key, shifted)
    for bad in (_INFINITE_SIGNATURE, bytes(96), b""):
        assert not bls.verify_all(_KEY.public_key, ((_DIGEST, first), (other, bad)))
    assert not bls.verify_all(_INFINITE_KEY, ((_DIGEST, _INFINITE_SIGNATURE),))


def test_what_was_found_right_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself or together with others; of several only those that are new are."""
    digests = [hashlib.sha256(b"known %d" % number).digest() for number in range(3)]
    first, second, third = ((digest, _KEY.sign(digest)) for digest in digests)
    assert bls.verify_all(_KEY.public_key, (first, second))
    assert bls.verify(_KEY.public_key, *third)
    monkeypatch.setattr(bls, "final_verify", lambda *_: False)
    assert bls.verify(_KEY.public_key, *first)
    assert bls.verify_all(_KEY.public_key, (first, second, third))
    assert not bls.verify_all(_KEY.public_key, (first, (digests[1], third[1])))


def test_a_key_cannot_be_shown_as_anothers() -> None:
    """A copied proof is no proof for whoever copied it."""
    proof = _KEY.prove_possession(_ACCOUNT)
    assert not bls.verify_possession(_KEY.public_key, b"\x03" + bytes(32), proof)


@pytest.mark.parametrize("scalar", [0, -1, bls.ORDER, bls.ORDER + 5])
def test_a_scalar_out_of_range_is_refused(scalar: int) -> None:
    """Zero has the point at infinity, and the rest would be another number's key."""
    with pytest.raises(SlotError, match="key: A secret BLS key is a number from 1"):
        bls.SecretKey(scalar)


def test_a_short_seed_is_refused() -> None:
    """Fewer than 32 bytes can be guessed."""
    with pytest.raises(SlotError, match="has 31 bytes; allowed: at least 32"):
        bls.SecretKey.from_seed(bytes(31))


def test_infinity_signs_nothing() -> None:
    """Though the pairing of it with itself holds, for every digest."""
    assert not bls.verify(_INFINITE_KEY, _DIGEST, _INFINITE_SIGNATURE)
    assert not bls.verify(_KEY.public_key, _DIGEST, _INFINITE_SIGNATURE)
    assert not bls.verify_possession(_INFINITE_KEY, _ACCOUNT, _INFINITE_SIGNATURE)


def test_points_out_of_the_group_are_refused() -> None:
    """On the curve is not enough: small factors of its order give a secret away."""
    x = next(
        x for x in range(1, 100) if pow(x**3 + 4, (field_modulus - 1) // 2, field_modulus) == 1
    )
    y = pow(x**3 + 4, (field_modulus + 1) // 4, field_modulus)
    assert not subgroup_check((FQ(x), FQ(y), FQ(1)))
    key = compress_G1((FQ(x), FQ(y), FQ(1))).to_bytes(48)
    assert not bls.verify(key, _DIGEST, _KEY.sign(_DIGEST))

    point = Z2
    for x in range(1, 100):
        try:
            point = decompress_G2((1 << 383, x))
        except ValueError:
            continue
        break
    assert not subgroup_check(point)
    assert not bls.verify(_KEY.public_key, _DIGEST, G2_to_signature(point))


@pytest.mark.parametrize("data", [b"", bytes(48), b"\xff" * 48, bytes(96), b"\xff" * 96])
def test_what_is_no_point_verifies_nothing(data: bytes) -> None:
    """As key, as signature and as proof."""
    assert not bls.verify(data, _DIGEST, _KEY.sign(_DIGEST))
    assert not bls.verify(_KEY.public_key, _DIGEST, data)
    assert not bls.verify_possession(_KEY.public_key, _ACCOUNT, data)


def test_a_secret_is_not_shown() -> None:
    """Neither by repr nor by a copy."""
    assert str(_KEY.scalar) not in repr(_KEY)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(_KEY)


def test_shares_of_a_group_make_its_signature() -> None:
    """Whichever t of n members sign, it is the one signature of the group; with fewer, or a wrong one, it is not."""
    numbers, threshold, digest = range(1, 8), 5, b"d" * 32
    rng = random.Random(7)  # noqa: S311 - the same in each run
    dealers = [[rng.randrange(1, bls.ORDER) for _ in range(threshold)] for _ in numbers]
    commitments = [[bls.SecretKey(one).public_key for one in dealer] for dealer in dealers]
    group = bls.add_keys([one[0] for one in commitments])
    joint = [bls.add_keys(column) for column in zip(*commitments, strict=True)]
    secrets_ = {
        number: sum(one * number**k for dealer in dealers for k, one in enumerate(dealer))
        % bls.ORDER
        for number in numbers
    }
    shares = {number: bls.SecretKey(secret) for number, secret in secrets_.items()}
    assert all(bls.value_at(joint, number) == share.public_key for number, share in shares.items())
    signed = {number: share.sign(digest) for number, share in shares.items()}
    made = {
        bls.combine({number: signed[number] for number in chosen})
        for chosen in itertools.combinations(numbers, threshold)
    }
    assert made == {bls.SecretKey(sum(dealer[0] for dealer in dealers) % bls.ORDER).sign(digest)}
    assert bls.verify(group, digest, made.pop())
    few = bls.combine({number: signed[number] for number in (1, 2, 3, 4)})
    wrong = bls.combine({**{number: signed[number] for number in (1, 2, 3, 4)}, 5: signed[6]})
    assert not bls.verify(group, digest, few)
    assert not bls.verify(group, digest, wrong)


def test_what_is_no_share_or_no_key_is_refused() -> None:
    """Infinity, which adds nothing, and bytes that are no point."""
    wrong: list[dict[int, bytes]] = [{}, {1: _INFINITE_SIGNATURE}, {1: bytes(96)}]
    for shares in wrong:
        with pytest.raises(SlotError, match="signature"):
            bls.combine(shares)
    key = bls.SecretKey(5)
    other = bls.SecretKey(bls.ORDER - 5)
    none: list[list[bytes]] = [[_INFINITE_KEY], [bytes(48)], [key.public_key, other.public_key]]
    for keys in none:
        with pytest.raises(SlotError, match="key"):
            bls.add_keys(keys)
    with pytest.raises(SlotError, match="key"):
        bls.value_at(none[2], 1)
