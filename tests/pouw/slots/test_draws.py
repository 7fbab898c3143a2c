"""A nonce is one of few that nobody knew before the beacon."""

from __future__ import annotations

import hashlib

from pocqueue.pouw.slots.draws import allowance, base_nonce, draws, is_allowed
from pocqueue.pouw.slots.task import TaskSpec


def test_draws_follow_the_base() -> None:
    """Exactly the first `count` are allowed, around the end of the numbers as well."""
    for base in (0, 12_345, 2**64 - 3):
        found = list(draws(base, 16))
        assert len(set(found)) == 16
        assert all(is_allowed(nonce, base, 16) for nonce in found)
        for outside in ((base - 1) % 2**64, (base + 16) % 2**64):
            assert not is_allowed(outside.to_bytes(8, "little"), base, 16)
    assert list(draws(2**64 - 1, 2)) == [b"\xff" * 8, bytes(8)]


def test_the_base_is_a_hash_of_weights_map_and_beacon() -> None:
    """Written out once by hand; another beacon, map or weights is another base."""
    inner = hashlib.sha256(b"pocqueue.pouw.precursor.v1\x00" + b"w" * 32 + b"m" * 32 + b"b" * 96)
    expected = int.from_bytes(hashlib.sha256(inner.digest()).digest()[:8], "little")
    assert base_nonce(b"w" * 32, b"m" * 32, b"b" * 96) == expected
    others = {
        base_nonce(b"x" * 32, b"m" * 32, b"b" * 96),
        base_nonce(b"w" * 32, b"x" * 32, b"b" * 96),
        base_nonce(b"w" * 32, b"m" * 32, b"x" * 96),
    }
    assert len(others | {expected}) == 4


def test_the_allowance_is_bounded_by_arithmetic() -> None:
    """One draw a KiB and per 65,536 weights, but no more than the model's work stands for."""
    digits = TaskSpec(bytes(32), "MLP", (128, 64), "digits", 64, 0.3, 0.02)

    def of(task: TaskSpec, parts: int = 1) -> int:
        return allowance(
            task.sample_bytes(parts),
            task.num_weights,
            task.work(parts),
            per_byte=2**32 // 1024,
            per_weight=2**32 // 65536,
        )

    assert of(digits) == 16
    assert of(digits, parts=2) == 32
    linear = TaskSpec(bytes(32), "MLP", (), "digits", 1024, 0.3, 0.02)
    assert of(linear) == 1 + (640 * 1024 >> 16) == 11
    assert allowance(0, 0, 0, per_byte=1, per_weight=1) == 1
