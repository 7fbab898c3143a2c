"""A task's certified slots, one after another, and the weights that follow from them.

`SlotHistory.check` says what a record leads to and changes nothing; `add` takes it in. Between the two it is
written to disk, so that memory is never ahead of it. Weights at the starts of laps are kept, those between are
counted again: a slot's maps are added in well under a millisecond, a gradient takes many.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.certificate import verify_link
from pocqueue.pouw.slots.messages import WINDOW, read
from pocqueue.pouw.slots.task import LAP, LapSlot, TaskSpec
from pocqueue.pouw.slots.weights import (
    Weights,
    first_weights,
    next_weights,
    weights_bytes,
    weights_from,
    weights_hash,
)
from pocqueue.pouw.wire.evidence import TwoMessages
from pocqueue.pouw.wire.requests import IterationWithMap, Slot
from pocqueue.pouw.wire.slots import Certificate, Iteration, SignedCertificate, SlotRecord

#: Laps before the open one that are kept in memory.
KEPT_LAPS: Final = 2

_MAX_NOTICED: Final = 64

#: A lane of the network: its account and its number there.
Lane = tuple[bytes, int]


class Checkpoint(NamedTuple):
    """The weights at the start of a lap, and the certificate that has their hash."""

    signed: SignedCertificate | None  #: of the slot before; None: slot 0
    theta: (
        bytes  #: `weights.weights_bytes`; not looked at for slot 0, whose follow from the task's id
    )

    @property
    def slot(self) -> int:
        """Return the slot at whose start they are."""
        return 0 if self.signed is None else self.signed.certificate.slot + 1


class Advance(NamedTuple):
    """A certified slot, checked, and where it leads."""

    slot: Slot  #: its messages are in the order of the record's ids
    weights: Weights  #: float32 ``[num_weights]``, at the start of the next slot

    @property
    def certificate(self) -> Certificate:
        """Return the slot's certificate."""
        return self.slot.record.signed.certificate

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Return the weights to keep; None unless the next slot begins a lap."""
        if (self.certificate.slot + 1) % LAP:
            return None
        return Checkpoint(self.slot.record.signed, weights_bytes(self.weights))


class Unsigned(NamedTuple):
    """A slot before its committee has signed it, checked, and where it would lead."""

    certificate: Certificate
    messages: tuple[IterationWithMap, ...]  #: in their order
    weights: Weights  #: float32 ``[num_weights]``, at the start of the next slot

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Return the ids of its messages."""
        return tuple(message.iteration.id for message in self.messages)

    def certified(self, signed: SignedCertificate) -> Advance:
        """Return it with its certificate, in whichever ballot that was signed."""
        assert signed.certificate.id == self.certificate.id
        return Advance(Slot(SlotRecord(signed, self.ids), self.messages), self.weights)


class SlotHistory:
    """The history of one task. Of one thread.

    Args:
        task: what is trained.
        network: the network's id.
        start: where it begins; None: at slot 0. Its certificate's signature was checked.

    Raises:
        SlotError: ``theta``: the weights of `start` are not those that its certificate has the hash of, or
            it is within a lap.
    """

    def __init__(self, task: TaskSpec, network: bytes, start: Checkpoint | None = None) -> None:
        self.task = task
        self.network = network
        start = start or Checkpoint(None, b"")
        self.signed = start.signed  #: newest certificate; None at slot 0
        #: Slots in a row that nobody had a message of, up to the open one; those before the start are not known.
        self.num_empty = 0
        #: Float32 ``[num_weights]`` at the start of `next_slot`.
        self.weights = _start(task, start)
        self._starts = {self.next_slot: self.weights}
        self._slots: dict[int, Slot] = {}
        self._pending: dict[int, dict[Lane, IterationWithMap]] = {}
        #: What lanes have said twice; whoever reads it takes it out.
        self.contradictions: deque[TwoMessages] = deque(maxlen=_MAX_NOTICED)

    @property
    def parent(self) -> Certificate | None:
        """Return the newest certificate; None at slot 0."""
        return None if self.signed is None else self.signed.certificate

    @property
    def next_slot(self) -> int:
        """Return the slot that is open."""
        return 0 if self.parent is None else self.parent.slot + 1

    @property
    def previous(self) -> bytes:
        """Return what messages and the certificate of the open slot name as `previous`."""
        return self.task.id if self.parent is None else self.parent.id

    @property
    def theta(self) -> bytes:
        """Return the bytes of `weights`."""
        return weights_bytes(self.weights)

    def keep(self, message: IterationWithMap) -> bool:
        """Keep a checked message until its slot is certified.

        Returns:
            Whether it is new and worth passing on. A second one of a lane for a slot is not kept, but noticed.
        """
        iteration = message.iteration
        self._compare(iteration)
        if not self.next_slot <= iteration.slot <= self.next_slot + WINDOW:
            return False
        kept = self._pending.setdefault(iteration.slot, {})
        if iteration.order in kept:
            return False
        kept[iteration.order] = message
        return True

    @property
    def num_kept(self) -> int:
        """Return how many messages are kept for the open slot; from any thread."""
        return len(self._pending.get(self.next_slot, ()))

    def pending(self) -> list[IterationWithMap]:
        """Return what is kept for the open slot and follows its predecessor, by (miner, lane)."""
        kept = self._pending.get(self.next_slot, {})
        return [
            kept[lane] for lane in sorted(kept) if kept[lane].iteration.previous == self.previous
        ]

    def check(self, record: SlotRecord, messages: Iterable[IterationWithMap] = ()) -> Advance:
        """Return what a record of the open slot leads to. Nothing is changed.

        Args:
            record: its signatures were checked (`certificate.verify_signed`).
            messages: of the slot, from anybody, beside those that are kept.

        Raises:
            SlotError: as `verify_link` and `messages.read`; ``missing``: messages are not here;
                ``membership``: it has messages of another slot, or two of one lane; ``theta``: other weights
                follow from them here.
        """
        return self.judge(record.signed.certificate, record.ids, messages).certified(record.signed)

    def judge(
        self,
        certificate: Certificate,
        ids: tuple[bytes, ...],
        messages: Iterable[IterationWithMap] = (),
    ) -> Unsigned:
        """Return what a certificate of the open slot would lead to, whoever has signed it. Nothing is changed.

        Args:
            certificate: of any slot.
            ids: those of its messages.
            messages: as in `check`.

        Raises:
            SlotError: as `check`.
        """
        verify_link(certificate, ids, self.task.id, self.parent)
        if certificate.network != self.network:
            raise SlotError("network", f"slot {certificate.slot} is of another network.")
        if certificate.count > self.task.max_messages:
            raise SlotError(
                "count",
                f"slot {certificate.slot} has {certificate.count} messages; allowed for its task: "
                f"{self.task.max_messages}.",
            )
        found = {message.iteration.id: message for message in (*messages, *self._kept(certificate))}
        gone = sum(id_ not in found for id_ in ids)
        if gone:
            raise SlotError(
                "missing", f"{gone} of slot {certificate.slot}'s {certificate.count} messages."
            )
        members = tuple(found[id_] for id_ in ids)
        self._check_order(certificate, [message.iteration for message in members])
        maps = [read(message, self.task, self.network) for message in members]
        weights = next_weights(self.task, self.weights, maps)
        if weights_hash(weights) != certificate.theta:
            raise SlotError(
                "theta", f"other weights than certified follow slot {certificate.slot}."
            )
        return Unsigned(certificate, members, weights)

    def add(self, advance: Advance) -> None:
        """Take in what `check` returned for the open slot."""
        certificate = advance.certificate
        assert certificate.previous == self.previous
        self.signed, self.weights = advance.slot.record.signed, advance.weights
        self.num_empty = 0 if certificate.count else self.num_empty + 1
        for message in advance.slot.messages:
            self._compare(message.iteration)
        self._slots[certificate.slot] = advance.slot
        self._pending.pop(certificate.slot, None)
        if self.next_slot % LAP == 0:
            self._starts[self.next_slot] = self.weights
            oldest = self.next_slot - KEPT_LAPS * LAP
            self._starts = {at: value for at, value in self._starts.items() if at >= oldest}
            self._slots = {at: slot for at, slot in self._slots.items() if at >= oldest}

    def own(self, lane: Lane) -> list[Iteration]:
        """Return a lane's certified messages of the open lap, oldest first."""
        first = self.next_slot - self.next_slot % LAP
        own = (_of(self._slots[slot], lane) for slot in range(first, self.next_slot))
        return [message.iteration for message in own if message is not None]

    def message(self, slot: int, lane: Lane) -> Iteration | None:
        """Return a lane's certified message of a slot whose `lap` is here; None: it has none there."""
        found = _of(self._slots[slot], lane)
        return None if found is None else found.iteration

    def lap(self, slot: int, lane: Lane) -> tuple[LapSlot, ...]:
        """Return what it takes to execute a certified message again: its lap up to its slot.

        Raises:
            SlotError: ``history``: the lap is not in memory; `SlotStore.history` may have it.
        """
        first = slot - slot % LAP
        if first not in self._starts or not first <= slot < self.next_slot:
            raise SlotError("history", f"the lap of slot {slot} is not in memory.")
        return tuple(self._replay(first, slot, lane))

    def _compare(self, iteration: Iteration) -> None:
        """Notice a message that contradicts the one of its lane and slot that is here."""
        kept = self._pending.get(iteration.slot, {}).get(iteration.order)
        if kept is None and iteration.slot in self._slots:
            kept = _of(self._slots[iteration.slot], iteration.order)
        if kept is not None and kept.iteration.id != iteration.id:
            self.contradictions.append(TwoMessages(kept.iteration, iteration))

    def _replay(self, first: int, last: int, lane: Lane) -> Iterator[LapSlot]:
        weights = self._starts[first]
        for number in range(first, last + 1):
            slot = self._slots[number]
            message = _of(slot, lane)
            if message is None:
                yield LapSlot(number, b"", None, 1)
            else:
                theta = weights_bytes(weights)
                yield LapSlot(number, theta, message.map, message.iteration.parts)
            maps = [read(message, self.task, self.network) for message in slot.messages]
            weights = next_weights(self.task, weights, maps)

    def _kept(self, certificate: Certificate) -> Iterable[IterationWithMap]:
        return self._pending.get(certificate.slot, {}).values()

    def _check_order(self, certificate: Certificate, members: list[Iteration]) -> None:
        due = (certificate.slot, certificate.previous)
        for iteration in members:
            if (iteration.slot, iteration.previous) != due:
                raise SlotError(
                    "membership", f"slot {certificate.slot} has a message of another slot."
                )
        lanes = [iteration.order for iteration in members]
        if lanes != sorted(set(lanes)):
            raise SlotError(
                "membership", f"slot {certificate.slot}'s messages are not one a lane, in order."
            )


def _start(task: TaskSpec, start: Checkpoint) -> Weights:
    if start.signed is None:
        return first_weights(task)
    certificate = start.signed.certificate
    if certificate.task != task.id or start.slot % LAP:
        raise SlotError("theta", f"slot {start.slot} does not begin a lap of task {task.id.hex()}.")
    is_whole = len(start.theta) == 4 * task.num_weights
    if not is_whole or hashlib.sha256(start.theta).digest() != certificate.theta:
        raise SlotError(
            "theta", f"the weights at slot {start.slot} are not those of its certificate."
        )
    return weights_from(start.theta)


def _of(slot: Slot, lane: Lane) -> IterationWithMap | None:
    return next((it for it in slot.messages if it.iteration.order == lane), None)
