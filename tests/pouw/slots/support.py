"""A small task, its committee of one, and miners whose maps are made up: what slots need but no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.signatures import account_of, sign
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.collector import Anchor, Collector
from pocqueue.pouw.slots.history import Advance, Lane, SlotHistory
from pocqueue.pouw.slots.maps import decode_map, encode_map, map_hash
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import weights_end, weights_from
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import Certificate, Iteration
from tests.pouw.support import certify

NETWORK = b"n" * 32
#: 650 weights.
TASK = TaskSpec(b"t" * 32, "MLP", (), "digits", 8, 0.3, 0.02)
SECRET = bls.SecretKey(1234567)
COMMITTEE = Committee(0, (b"\x02" + bytes(32),), SECRET.public_key)
#: In the order of their accounts.
KEYS = sorted((SigningKey.generate() for _ in range(3)), key=account_of)
LANES = [(account_of(key), 0) for key in KEYS]
ANCHOR = Anchor(b"a" * 32, 3)


class MadeUp(NamedTuple):
    """What a trainer would give, by the seed alone; its residual is the seed in words."""

    map: bytes
    weights_end: bytes
    loss: int
    residual: bytes


def made_up(theta: bytes, seed: bytes) -> MadeUp:
    """Return an iteration of 1 to 8 entries that a seed says."""
    noise = np.frombuffer(hashlib.sha256(seed).digest(), dtype="<u4")
    indices = np.unique(noise[: 1 + noise[0] % 8] % TASK.num_weights)
    data = encode_map(indices, np.where(noise[: len(indices)] % 2, 1, -1))
    entries = decode_map(data, TASK.num_weights, TASK.cap)
    end = weights_end(TASK, weights_from(theta), entries)
    return MadeUp(data, end, int(noise[0] % 100), b"after " + seed)


def message(
    history: SlotHistory, key: SigningKey, *, seed: bytes = b"", **changed: object
) -> IterationWithMap:
    """Return a message for the open slot of a history, signed after fields were changed."""
    slot, account = history.next_slot, account_of(key)
    done = made_up(history.theta, seed + account + bytes([slot % 256]))
    iteration = Iteration(
        version=1,
        network=NETWORK,
        task=TASK.id,
        slot=slot,
        miner=account,
        lane=0,
        parts=1,
        map_hash=map_hash(done.map),
        entries=len(decode_map(done.map, TASK.num_weights, TASK.cap).indices),
        weights_end=done.weights_end,
        loss=done.loss,
        previous=history.previous,
        commitment=ZERO,
        signature=bytes(64),
    )
    iteration = replace(iteration, **changed)
    signed = replace(iteration, signature=sign(key, iteration.id))
    return IterationWithMap(signed, done.map)


class Alone:
    """The committee of one at a history: what it closes it has signed, and that stands until the history has it."""

    def __init__(self, history: SlotHistory, slot_ms: int) -> None:
        self._history = history
        self._collector = Collector(history, slot_ms=slot_ms)
        self._decision: Advance | None = None

    def add(self, message: IterationWithMap, now_ms: int) -> bool:
        """See `Collector.add`."""
        return self._collector.add(message, now_ms)

    def tick(
        self,
        now_ms: int,
        lanes: Collection[Lane],
        anchor: Anchor,
        newest: Certificate | None = None,
    ) -> Advance | None:
        """Close the open slot if it is time to."""
        if self._decision and self._decision.certificate.slot == self._history.next_slot:
            return self._decision
        self._decision = None
        if now_ms >= self._collector.closes_at(now_ms, lanes):
            found = self._collector.value(now_ms, COMMITTEE.epoch, anchor, newest)
            self._decision = found.certified(certify(SECRET, found.certificate))
        return self._decision


def collector(history: SlotHistory, *, slot_ms: int = 0) -> Alone:
    """Return the committee at a history."""
    return Alone(history, slot_ms)


def decided(history: SlotHistory, *messages: IterationWithMap) -> Advance:
    """Return what the committee decides with these messages, if nobody else is to be waited for."""
    committee = collector(history)
    for it in messages:
        committee.add(it, 0)
    decision = committee.tick(0, [], ANCHOR) or committee.tick(5000, [], ANCHOR)
    assert decision is not None
    return decision


def grow(history: SlotHistory, *keys: SigningKey) -> Advance:
    """Certify the open slot with a message a key, and go on to the next one."""
    decision = decided(history, *(message(history, key) for key in keys))
    advance = history.check(decision.slot.record)
    history.add(advance)
    return advance
