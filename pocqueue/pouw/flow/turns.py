"""One turn of a committee, by one of its members: from the first message of a slot to its record.

It waits until the slot is to be closed, or until others say so; then members agree, each shows its share of the
beacon, and the record is on disk and with everybody. What a member says is on its disk before anybody hears it. A
committee of one says nothing to anybody but the record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from pocqueue.pouw.committee.agreement import Agreement
from pocqueue.pouw.committee.seats import Seat
from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.committee.words import at
from pocqueue.pouw.errors import PouwError
from pocqueue.pouw.flow.bench import Bench
from pocqueue.pouw.flow.core import now_ms, wait_for
from pocqueue.pouw.flow.hearing import MAX_WORDS, Word, check
from pocqueue.pouw.flow.proposals import deep_anchor
from pocqueue.pouw.flow.turn_end import TurnEnd
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.history import Unsigned
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.votes import BeaconShare, Proposal, Said

#: After so long without a word all that is held of the turn is said again.
REPEAT_S: Final = 0.4
#: And after so long whatever was heard: one liar can always say something new.
_REPEAT_AT_LEAST_S = 2.0
#: While this node may not sign, it looks again after this.
_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class OpenTurn:
    """The turn that is open, for a member.

    Args:
        bench: of the node.
        seat: of the node, in the committee whose turn it is.
    """

    def __init__(self, bench: Bench, seat: Seat) -> None:
        self._bench, self._seat = bench, seat
        core, slots = bench.core, bench.slots
        self.turn = Turn(core.genesis.network, seat.committee, slots.next_turn)
        newest = slots.newest[2]
        self._newest = None if newest is None else newest.certificate
        self._is_alone = len(seat.committee.members) == 1
        self._agreement: Agreement | None = None
        self._early: list[Said] = []  # words from before the agreement began
        self._values: dict[bytes, Unsigned] = {}
        slots.judged = self._values
        self._judging: dict[bytes, asyncio.Task[None]] = {}
        self._end = TurnEnd(bench, seat, self.turn)
        self._wake = asyncio.Event()
        self._heard_s = self._repeated_s = time.monotonic()

    async def run(self) -> None:
        """Go on until the turn's certificate is here, from this member or from anybody.

        Raises:
            NodeDataError: nothing can be written.
            SlotError, TrainingError: what is to be trained is not known here.
        """
        bench, wake = self._bench, self._wake
        slots, hearing = bench.slots, bench.hearing
        if self.turn.number <= bench.store.own.newest_turn:
            said = await slots.in_slots(bench.store.own.said, self.turn.number)
            if said:
                self._begin(said)
        hearing.listener = self
        for word in hearing.waiting(self.turn):
            self._hear_checked(word)
        try:
            with (
                slots.heard.sets(wake),
                slots.changed.sets(wake),
                bench.core.chain_changed.sets(wake),
            ):
                while await self._is_open():
                    wake.clear()
                    wait_s = await self._step()
                    if slots.next_turn == self.turn.number:
                        await wait_for(wake, wait_s)
                if slots.newest_record is not None:
                    bench.open_slot.certified(slots.newest_record)
        finally:
            hearing.listener = None
            for task in self._judging.values():
                task.cancel()

    def hear(self, word: Word) -> bool:
        """See `Listener`."""
        if isinstance(word, BeaconShare) or self._agreement is None:
            check(self.turn, word)
        return self._hear_checked(word)

    async def _is_open(self) -> bool:
        slots, turn = self._bench.slots, self.turn
        return slots.next_turn == turn.number and await slots.committee() == turn.committee

    def _hear_checked(self, word: Word) -> bool:
        if isinstance(word, BeaconShare):
            is_new = self._end.hear(word)
        elif self._agreement is None:
            place = at(word)[1]
            said = [one for one in self._early if at(one)[1] == place]
            is_new = len(said) < MAX_WORDS and word not in said
            if is_new:
                self._early.append(word)
        else:
            is_new = self._agreement.hear(word, now_ms())
        if is_new:
            self._heard_s = time.monotonic()
            self._wake.set()
        return is_new

    @property
    def _is_pressed(self) -> bool:
        """Others say that the slot is to be closed: its leader, or one of them is not faulty.

        A leader of a later ballot alone has nothing to say yet; or one liar could close every slot at once.
        """
        is_proposed = any(isinstance(one, Proposal) and at(one)[0] == 0 for one in self._early)
        members = {at(one)[1] for one in self._early} | self._end.proofs.keys()
        return is_proposed or len(members) > self.turn.faults

    def _begin(self, said: list[Said]) -> None:
        seat, core = self._seat, self._bench.core
        self._agreement = Agreement(self.turn, seat.place, core.key, seat.share, said, now_ms())
        early, self._early = self._early, []
        for one in early:
            self._agreement.hear(one, now_ms())

    async def _step(self) -> float | None:
        """Do what is to be done now; return after how many seconds there is more to do, if nothing is heard."""
        bench = self._bench
        if not await bench.may_sign(is_alone=self._is_alone):
            return _PAUSE_S
        if self._agreement is None and not self._is_pressed:
            due_ms = await bench.open_slot.closes_at(self._newest)
            if due_ms > now_ms() and not self._is_pressed and self._agreement is None:
                return max(due_ms - now_ms(), 1) / 1000
        if self._agreement is None:
            self._begin([])
        agreement = self._agreement
        assert agreement is not None
        if agreement.wants_value:
            await self._propose(agreement)
        for word, proof in self._end.proofs.values():
            agreement.learn(word, proof)
        self._judge(agreement)
        agreement.tick(now_ms())
        await self._say(agreement)
        if agreement.decided is not None and await self._end.finish(agreement, self._values):
            return None
        return None if self._is_alone else self._repeated(agreement)

    async def _propose(self, agreement: Agreement) -> None:
        """Propose what is here of the slot."""
        bench = self._bench
        anchor = deep_anchor(bench.core.chain, self._newest)
        value = await bench.open_slot.value(self.turn, anchor, self._newest)
        if bench.slots.next_turn != self.turn.number:
            return
        self._values[value.certificate.id] = value
        agreement.propose(value.certificate, value.ids, now_ms())
        agreement.judge(value.certificate.value, True, now_ms())

    def _judge(self, agreement: Agreement) -> None:
        """Begin to judge what was proposed."""
        proposal = agreement.to_judge
        if proposal is None:
            return
        value = proposal.head.certificate.value
        if value in self._values:
            agreement.judge(value, True, now_ms())
        elif value not in self._judging:
            self._judging[value] = asyncio.create_task(self._judged(agreement, proposal))

    async def _judged(self, agreement: Agreement, proposal: Proposal) -> None:
        value = proposal.head.certificate.value
        try:
            self._values[value] = await self._bench.judge.judged(proposal, self._newest)
        except PouwError as exc:
            if self._bench.slots.next_turn != self.turn.number:
                return  # the turn is over
            _log.warning(
                "%s The proposal of member %d for turn %d is not good: %s",
                *(self._bench.core.name, proposal.head.member, self.turn.number, exc),
            )
        agreement.judge(value, value in self._values, now_ms())
        self._judging.pop(value, None)
        self._wake.set()

    async def _say(self, agreement: Agreement) -> None:
        """Write what this member says, then send it: all of it, also what it says while that is written.

        On return a decision rests on nothing that is in memory alone.
        """
        bench = self._bench
        while said := agreement.drain():
            if not self._is_alone:
                await bench.slots.in_slots(bench.store.own.write_said, self.turn.number, said)
                for one in filter(agreement.is_own, said):
                    self._push(one)
        for fault in agreement.drain_faults():
            bench.on_fault(fault)

    def _push(self, said: Said) -> None:
        kind = Kind.PROPOSAL if isinstance(said, Proposal) else Kind.VOTE
        self._bench.core.network.push(kind, encode(said))

    def _repeated(self, agreement: Agreement) -> float:
        """Say all again if nothing was heard for long; return after how many seconds there is something to do."""
        due_s = min(self._heard_s + REPEAT_S, self._repeated_s + _REPEAT_AT_LEAST_S)
        if time.monotonic() >= due_s:
            self._heard_s = self._repeated_s = time.monotonic()
            for one in agreement.repeat():
                self._push(one)
            self._end.repeat()
        silence_s = max(self._heard_s + REPEAT_S - time.monotonic(), 0.001)
        next_ms = agreement.next_at_ms
        return silence_s if next_ms is None else min(silence_s, max(next_ms - now_ms(), 1) / 1000)
