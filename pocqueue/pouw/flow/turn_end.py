"""The end of a turn, for a member: from the decision by way of the beacon to the record."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.committee.agreement import Agreement
from pocqueue.pouw.committee.seats import Seat
from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.beacons import BeaconShares
from pocqueue.pouw.flow.bench import Bench
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.history import Unsigned
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import SignedCertificate, SlotRecord, beacon_digest
from pocqueue.pouw.wire.votes import BeaconShare

#: Turns from one cleaning up to the next.
_FORGET_EVERY = 32

_log = logging.getLogger(__name__)


class TurnEnd:
    """What members show of a turn that is decided.

    Args:
        bench: of the node.
        seat: of the node, in the committee whose turn it is.
        turn: which one.

    Attributes:
        proofs: words and their signatures as members show them, by place. One that is of another turn says nothing
            here.
    """

    def __init__(self, bench: Bench, seat: Seat, turn: Turn) -> None:
        self._bench, self._seat, self._turn = bench, seat, turn
        self._is_alone = len(seat.committee.members) == 1
        self._beacon = BeaconShares(seat.committee)
        self.proofs: dict[int, tuple[bytes, bytes]] = {}
        self._own_share: bytes | None = None  # as it is sent
        self._is_said = False

    def hear(self, word: BeaconShare) -> bool:
        """Take a member's share, checked before; True if it is its first."""
        self.proofs[word.member] = (word.word, word.proof)
        return self._beacon.add(word.member, word.share)

    def repeat(self) -> None:
        """Show the own share again, if it was shown."""
        if self._own_share is not None:
            self._bench.core.network.push(Kind.BEACON, self._own_share)

    async def finish(self, agreement: Agreement, judged: Mapping[bytes, Unsigned]) -> bool:
        """Go on with a decision as far as that can be: show the beacon's share, combine it, take in the slot.

        Args:
            agreement: has decided; what it rests on is on disk.
            judged: what this member has found right, by the certificate's id.

        Returns:
            Whether the slot is here.
        """
        decided, bench = agreement.decided, self._bench
        assert decided is not None
        certificate = decided.certificate
        digest = beacon_digest(
            certificate.network, certificate.epoch, certificate.task, certificate.slot
        )
        if self._own_share is None:
            self._show_share(certificate.word, decided.signature, digest)
        beacon = self._beacon.combined(digest)
        committee = self._seat.committee
        for place in self._beacon.liars | agreement.liars:
            if (committee.epoch, place) not in bench.told:
                bench.told.add((committee.epoch, place))
                bench.core.alert(
                    "byzantine_fault",
                    f"member {place} of epoch {committee.epoch} has given a wrong share",
                    source=committee.members[place],
                )
        if beacon is None:
            return False
        signed = SignedCertificate(certificate, decided.signature, beacon)
        history = await bench.slots.history(certificate.task)
        value = judged.get(certificate.id)
        if value is None:
            try:
                value = await bench.slots.with_messages(
                    history, history.judge, certificate, decided.ids
                )
            except SlotError as exc:
                _log.debug("%s Turn %d waits: %s", bench.core.name, self._turn.number, exc)
                return False
        if not self._is_alone:
            # Not before all of it is here: what this node has said itself is not new to it when others say it. But the
            # others have it too, so nobody waits for this disk.
            self._say_record(signed, decided.ids)
        advance = value.certified(signed)
        if await bench.slots.decide(history, advance, is_alone=self._is_alone):
            if self._is_alone:
                self._say_record(signed, decided.ids)
            elif self._turn.number % _FORGET_EVERY == 0:
                await bench.slots.in_slots(bench.store.own.forget_said, self._turn.number)
        return True

    def _say_record(self, signed: SignedCertificate, ids: tuple[bytes, ...]) -> None:
        """Send the slot's record, once: all members have the same bytes, and one sends them to everybody."""
        if self._is_said:
            return
        self._is_said = True
        is_leader = self._turn.leader(signed.certificate.ballot) == self._seat.place
        network = self._bench.core.network
        say = network.publish if is_leader else network.tell
        say(Kind.RECORD, encode(SlotRecord(signed, ids)))

    def _show_share(self, word: bytes, proof: bytes, digest: bytes) -> None:
        turn, seat, core = self._turn, self._seat, self._bench.core
        share = seat.share.sign(digest)
        self._beacon.add(seat.place, share)
        blank = BeaconShare(
            network=turn.network,
            epoch=turn.committee.epoch,
            turn=turn.number,
            word=word,
            proof=proof,
            member=seat.place,
            share=share,
            signature=bytes(64),
        )
        said = msgspec.structs.replace(blank, signature=sign(core.key, blank.id))
        self._own_share = encode(said)
        if not self._is_alone:
            core.network.push(Kind.BEACON, self._own_share)
