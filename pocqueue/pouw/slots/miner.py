"""One lane of a miner: what it computes next, what it says of it, and the block that may come of it.

A residual counts what earlier certified messages of the lap left over. It stays in memory: the newest message
alone is on disk before it is sent, so that no lane contradicts itself. A lane that was restarted within a lap in
which it has certified messages sits that lap out: a map from another residual would fail when it is executed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.signatures import account_of, sign
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.certificate import membership
from pocqueue.pouw.slots.draws import base_nonce, draws
from pocqueue.pouw.slots.history import Lane, SlotHistory
from pocqueue.pouw.slots.maps import decode_map, map_hash
from pocqueue.pouw.wire.blocks import Block, Header, Trained
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import Iteration, Membership, SlotRecord
from pocqueue.pouw.wire.transactions import Transaction


class Candidate(NamedTuple):
    """A block that a lane may mine in the slot after the one of the message that commits to it."""

    header: Header  #: `message`, `certificate` and `nonce` are zero
    transactions: tuple[Transaction, ...]


class Work(NamedTuple):
    """The iteration that is due, as `Trainer.iterate` takes it."""

    slot: int
    theta: bytes
    residual: bytes | None  #: None: zero
    previous: bytes  #: `Iteration.previous`


class Computed(Protocol):
    """What came of a `Work`: `training.messages.IterationResult`."""

    @property
    def map(self) -> bytes:
        """Return the map's bytes."""

    @property
    def weights_end(self) -> bytes:
        """Return the hash of the weights as this map alone moves them."""

    @property
    def loss(self) -> int:
        """Return the mean loss of its samples, in millionths."""

    @property
    def residual(self) -> bytes:
        """Return the residual after it, if it is certified."""


class _Residuals(NamedTuple):
    """Of the newest message."""

    before: bytes | None  #: None: zero
    after: bytes  #: if it is certified


class LaneMiner:
    """A lane of this node on one task. Of one thread.

    Args:
        history: of the task.
        key: of its account.
        lane: its number at this account.
        sent: what it sent last for this task, from disk (`SlotStore.sent`); None: nothing.
    """

    def __init__(
        self,
        history: SlotHistory,
        key: SigningKey,
        lane: int = 0,
        sent: IterationWithMap | None = None,
    ) -> None:
        self.lane: Lane = (account_of(key), lane)
        self._history = history
        self._key = key
        self._sent = sent
        self._residuals: _Residuals | None = None
        # What the newest message commits to; gone after a restart, which costs the draws of a slot.
        self._candidate: Candidate | None = None
        # What its message of the newest certified slot commits to, with the proof of that message.
        self._committed: tuple[Candidate, Membership] | None = None

    @property
    def current(self) -> IterationWithMap | None:
        """Return its message of the open slot, to be sent again while the slot stays open."""
        sent = self._sent
        is_open = sent is not None and sent.iteration.slot == self._history.next_slot
        return sent if is_open else None

    def work(self) -> Work | None:
        """Return the iteration that is due; None: it has sent that, or it sits the lap out."""
        history, sent, residuals = self._history, self._sent, self._residuals
        slot = history.next_slot
        if sent is not None and sent.iteration.slot >= slot:
            return None
        own = history.own(self.lane)
        if not own:
            residual = None
        elif sent is None or residuals is None:
            return None  # it was restarted
        elif sent.iteration.id == own[-1].id:
            residual = residuals.after
        elif sent.iteration.slot > own[-1].slot:
            residual = residuals.before  # the newest was not certified, so it never was
        else:
            return None
        return Work(slot, history.theta, residual, history.previous)

    def message(
        self,
        work: Work,
        done: Computed,
        parts: int,
        candidate: Candidate | None,
        write: Callable[[IterationWithMap], None],
    ) -> IterationWithMap:
        """Sign the message of a slot, and put it on disk before it is the one that may be sent.

        Args:
            work: what was due.
            done: what came of it.
            parts: mini-batches that it was made with, 1 … 8.
            candidate: block for the next slot; None: it commits to none and mines nothing there.
            write: puts it on disk (`OwnWords.write_sent`); what it raises leaves the lane as it was.

        Raises:
            SlotError: ``sent``: this lane has a message of this slot, or of a later one.
        """
        if self._sent is not None and self._sent.iteration.slot >= work.slot:
            raise SlotError("sent", f"a message of slot {work.slot} was made already.")
        task, (account, lane) = self._history.task, self.lane
        if candidate is not None:
            header = candidate.header
            assert (header.task, header.slot) == (task.id, work.slot + 1)
            assert (header.miner, header.lane) == self.lane
        iteration = Iteration(
            version=1,
            network=self._history.network,
            task=task.id,
            slot=work.slot,
            miner=account,
            lane=lane,
            parts=parts,
            map_hash=map_hash(done.map),
            entries=len(decode_map(done.map, task.num_weights, task.cap).indices),
            weights_end=done.weights_end,
            loss=done.loss,
            previous=work.previous,
            commitment=ZERO if candidate is None else candidate.header.zero_nonce_hash,
            signature=bytes(64),
        )
        iteration = msgspec.structs.replace(iteration, signature=sign(self._key, iteration.id))
        sent = IterationWithMap(iteration, done.map)
        write(sent)
        self._candidate, self._sent = candidate, sent
        self._residuals = _Residuals(work.residual, done.residual)
        return sent

    def certified(self, record: SlotRecord, num_draws: Callable[[int, int], int]) -> Block | None:
        """Draw with its message of a slot, if it is certified, and so is the one before it.

        To be called with each record, after the history has it and before `work`.

        Args:
            record: the newest.
            num_draws: says how many nonces to try of an iteration with so many parts and entries; not more
                than are allowed.

        Returns:
            A block that meets its target; None if there is none.
        """
        slot, committed = record.signed.certificate.slot, self._committed
        message = None if self._sent is None else self._sent.iteration
        if message is None or message.slot != slot or message.id not in record.ids:
            self._committed = None
            return None
        winner = membership(message, record)
        self._committed = None if self._candidate is None else (self._candidate, winner)
        if committed is None or committed[0].header.slot != slot:
            return None
        (header, transactions), proof = committed
        base = base_nonce(message.weights_end, message.map_hash, record.signed.beacon)
        for nonce in draws(base, num_draws(message.parts, message.entries)):
            drawn = msgspec.structs.replace(
                header, message=message.id, certificate=record.signed.certificate.id, nonce=nonce
            )
            if drawn.meets_target:
                return Block(drawn, transactions, Trained(proof, winner))
        return None
