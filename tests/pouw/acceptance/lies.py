"""What only tests have nodes do beside `pocqueue.pouw.chaos.cheats`: miners that train less or send other blocks, members
that say what cannot be of their slot, candidates that do not make their committee's key as they should, and a client that orders what it gives nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

from msgspec.structs import replace

from pocqueue.pouw.chain.records import KeyGeneration
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.chaos.cheats import Undo
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.seats import Seat, seat_at
from pocqueue.pouw.config import NodeConfig
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.flow import datasets, key_generation, slot_sync
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots import bls
from pocqueue.pouw.training.trainer import Trainer
from pocqueue.pouw.wire.blocks import Block, Header
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import merkle_root
from pocqueue.pouw.wire.requests import ChunkRequest
from pocqueue.pouw.wire.slots import Certificate, SignedCertificate, SlotRecord, beacon_digest
from pocqueue.pouw.wire.transactions import Deal
from pocqueue.pouw.wire.votes import BeaconShare, Proposal, Vote
from tests.pouw.flow.cheats import Cheater, flipped, other_weights_end, random_map

_INFINITY = b"\xc0" + bytes(bls.SIGNATURE_BYTES - 1)

#: Returns what is said instead of something.
Change = Callable[[bytes], bytes]


def _says(core: Core, changes: dict[Kind, Change]) -> Undo:
    """Have a node say something else to everybody, whatever it believes itself."""
    network, honest = core.network, core.network.push

    def push(kind: Kind, body: bytes) -> int:
        return honest(kind, changes[kind](body) if kind in changes else body)

    vars(network)["push"] = push
    return lambda: vars(network).__delitem__("push")


def _seat(core: Core) -> Seat:
    state = core.chain.tip.state
    committee = state.committee_in_office
    assert committee is not None
    seat = seat_at(state, committee, Dealer(core.key, core.genesis.network))
    assert seat is not None
    return seat


def _voting(core: Core, share: Callable[[Vote], bytes]) -> Change:
    def change(body: bytes) -> bytes:
        vote = decode(body, Vote)
        if vote.share is None:
            return body
        vote = replace(vote, share=share(vote))
        return encode(replace(vote, signature=sign(core.key, vote.id)))

    return change


def other_ballot(core: Core) -> Undo:
    """Give to certificates what is signed for the next ballot of the same turn, where this node is the leader."""
    seat, proposed = _seat(core), dict[bytes, Certificate]()

    def note(body: bytes) -> bytes:
        certificate = decode(body, Proposal).head.certificate
        proposed[certificate.value] = certificate
        return body

    def share(vote: Vote) -> bytes:
        assert vote.value is not None
        assert vote.share is not None
        certificate = proposed.get(vote.value)
        if certificate is None:
            return vote.share
        return seat.share.sign(replace(certificate, ballot=certificate.ballot + 1).word)

    return _says(core, {Kind.PROPOSAL: note, Kind.VOTE: _voting(core, share)})


def infinity(core: Core) -> Undo:
    """Give the point at infinity to certificates."""
    return _says(core, {Kind.VOTE: _voting(core, lambda _: _INFINITY)})


def old_beacon(core: Core) -> Undo:
    """Give to each beacon what was given to the one before."""
    given: dict[int, bytes] = {}

    def change(body: bytes) -> bytes:
        said = decode(body, BeaconShare)
        given[said.turn] = said.share
        said = replace(said, share=given.get(said.turn - 1, _INFINITY))
        return encode(replace(said, signature=sign(core.key, said.id)))

    return _says(core, {Kind.BEACON: change})


def other_previous(core: Core) -> Undo:
    """Propose slots that follow on others than there are."""

    def change(body: bytes) -> bytes:
        proposal = decode(body, Proposal)
        certificate = replace(proposal.head.certificate, previous=b"p" * 32)
        head = replace(proposal.head, certificate=certificate)
        return encode(replace(proposal, head=replace(head, signature=sign(core.key, head.id))))

    return _says(core, {Kind.PROPOSAL: change})


def forged_record(core: Core) -> Undo:
    """After each slot say another one, which the share of this member alone has signed."""
    network, seat = core.network, _seat(core)
    honest = {"publish": network.publish, "tell": network.tell}

    def forged(record: SlotRecord) -> SlotRecord:
        last = record.signed.certificate
        certificate = replace(
            last,
            turn=last.turn + 1,
            parent=last.id,
            slot=last.slot + 1,
            previous=last.id,
            root=merkle_root(()),
            count=0,
        )
        digest = beacon_digest(last.network, last.epoch, last.task, certificate.slot)
        signed = SignedCertificate(
            certificate, seat.share.sign(certificate.word), seat.share.sign(digest)
        )
        return SlotRecord(signed, ())

    def saying(name: str) -> Callable[[Kind, bytes], None]:
        def say(kind: Kind, body: bytes) -> None:
            honest[name](kind, body)
            if kind is Kind.RECORD:
                network.push(kind, encode(forged(decode(body, SlotRecord))))

        return say

    for name in honest:
        vars(network)[name] = saying(name)

    def undo() -> None:
        for name in honest:
            del vars(network)[name]

    return undo


def _training(**how: Any) -> Callable[[Core], Undo]:
    """Return what has a miner train otherwise; see `tests.pouw.flow.cheats.Cheater`."""

    def begin(core: Core) -> Undo:
        honest = core.trainer
        core.trainer = cast("Trainer", Cheater(honest, **how))

        def undo() -> None:
            core.trainer = honest

        return undo

    return begin


def _grinding(change: Callable[[Header, int], Header]) -> Callable[[Core], Undo]:
    """Return what has a miner send other blocks than those that it found: such as it looked for by hashing alone.

    Args:
        change: returns the header to try after so many others.
    """

    def begin(core: Core) -> Undo:
        network, honest = core.network, core.network.push_block

        def push_block(identifier: bytes, body: bytes) -> None:
            block = decode(body, Block)
            tried = (change(block.header, number) for number in itertools.count(1))
            block = replace(block, header=next(one for one in tried if one.meets_target))
            honest(block.id, encode(block))

        vars(network)["push_block"] = push_block
        return lambda: vars(network).__delitem__("push_block")

    return begin


def _other_nonce(header: Header, number: int) -> Header:
    """Return a header with a nonce far behind the last one that is allowed."""
    nonce = (int.from_bytes(header.nonce, "little") + 2**32 + number) % 2**64
    return replace(header, nonce=nonce.to_bytes(8, "little"))


#: Of members and miners, by name: `NodeProcess.tell("cheat/NAME")`.
LIES: dict[str, Callable[[Core], Undo]] = {
    "random-map": _training(change=random_map),
    "flipped": _training(change=flipped),
    "copied": _training(copies=True),
    "eighth-of-the-batch": _training(batch_share=8),
    "bfloat16": _training(is_rounded=True),
    "other-weights-end": _training(change=other_weights_end),
    "old-residual": _training(keeps_residual=True),
    "other-header": _grinding(
        lambda header, number: replace(header, time_ms=header.time_ms + number)
    ),
    "other-nonce": _grinding(_other_nonce),
    "other-ballot": other_ballot,
    "infinity": infinity,
    "old-beacon": old_beacon,
    "other-previous": other_previous,
    "forged-record": forged_record,
}


def _silent() -> None:
    def nothing(*_: Any) -> list[Any]:
        return []

    vars(key_generation)["steps_of"] = nothing


def _deals_wrongly() -> None:
    honest = Dealer.deal

    def deal(self: Dealer, generation: KeyGeneration) -> Deal:
        dealt = honest(self, generation)
        victim = max(place for place, sealed in enumerate(dealt.shares) if sealed)
        shares = [bytes(48) if place == victim else one for place, one in enumerate(dealt.shares)]
        return replace(dealt, shares=tuple(shares))

    Dealer.deal = deal  # type: ignore[method-assign]


def _complains_falsely() -> None:
    honest = Dealer.opened

    def opened(self: Dealer, generation: KeyGeneration, dealer: int, deal: Deal) -> int | None:
        first = min(
            place for place, one in enumerate(generation.candidates) if one.account != self.account
        )
        return None if dealer == first else honest(self, generation, dealer, deal)

    Dealer.opened = opened  # type: ignore[method-assign]


def _jumps() -> None:
    slot_sync._MAX_BEHIND, slot_sync._HEAD_START = 40, 16


def _audits_nobody() -> None:
    honest = NodeConfig.__post_init__

    def checked(self: NodeConfig) -> None:
        self.enable_attack_mitigation = False
        honest(self)

    NodeConfig.__post_init__ = checked  # type: ignore[method-assign]


def _is_impatient() -> None:
    vars(datasets)["PATIENCE_S"] = 5.0


def _gives_no_data() -> None:
    async def answer(self: Datasets, request: ChunkRequest) -> bytes:
        raise LinkError("no such data are here")

    Datasets.answer = answer  # type: ignore[method-assign]


#: From the start of a process on. Candidates for a committee: one that is silent, one that deals a wrong share to the last of
#: the others, and one that says so of the first of the others though it is not true. A node that goes on from weights of
#: others when it is a few slots behind, one whose operator has nobody audited or banned, one that waits for a client's data
#: for seconds, and a client that gives its data to nobody.
CHANGES: dict[str, Callable[[], None]] = {
    "jumps": _jumps,
    "silent": _silent,
    "deals-wrongly": _deals_wrongly,
    "complains-falsely": _complains_falsely,
    "audits-nobody": _audits_nobody,
    "impatient": _is_impatient,
    "gives-no-data": _gives_no_data,
}
