"""Four members certify slot after slot together: with one away, after restarts, and whatever one of them says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.flow.hearing import MAX_WORDS
from pocqueue.pouw.flow.open_slot import OpenSlot
from pocqueue.pouw.flow.turns import OpenTurn
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots import bls, collector
from pocqueue.pouw.slots.history import Advance
from pocqueue.pouw.slots.maps import encode_map, map_hash
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import Certificate, Iteration, SlotRecord
from pocqueue.pouw.wire.votes import (
    PRECOMMIT,
    PREVOTE,
    BeaconShare,
    Proposal,
    ProposalHead,
    Said,
    Vote,
)
from tests.pouw.flow.members import (
    NAMES,
    Hub,
    Member,
    four,
    member,
    office_genesis,
    record_of,
    until,
)
from tests.pouw.support import account, key

_INFINITY = b"\xc0" + bytes(95)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close slots that nobody has a message of after a moment."""
    monkeypatch.setattr(collector, "IDLE_MS", 20)
    monkeypatch.setattr(collector, "MAX_IDLE_MS", 20)


def _are_one(members: list[Member], num_turns: int) -> None:
    """Hold that all have the same certificates, each on the one before."""
    chains = [[one.id for one in each.certificates()][:num_turns] for each in members]
    assert all(chain == chains[0] for chain in chains)
    found = members[0].certificates()[:num_turns]
    assert [one.turn for one in found] == list(range(num_turns))
    assert all(later.parent == before.id for before, later in pairwise(found))


async def _reached(members: list[Member], turn: int) -> None:
    """Wait until a turn is open for all of them."""
    await until(lambda: all(one.turn >= turn for one in members), f"turn {turn}")


def _nobody_contradicts(hub: Hub) -> None:
    """Hold that nobody has said two things in a ballot."""
    said = dict[tuple[int, ...], bytes | None]()
    for _, kind, body in hub.said:
        if kind is Kind.VOTE:
            vote = decode(body, Vote)
            place = (vote.turn, vote.ballot, vote.kind, vote.member)
            assert said.setdefault(place, vote.value) == vote.value
        elif kind is Kind.PROPOSAL:
            head = decode(body, Proposal).head
            place = (head.certificate.turn, head.certificate.ballot, 0, head.member)
            assert said.setdefault(place, head.certificate.value) == head.certificate.value


async def test_four_certify_one_chain_of_slots() -> None:
    """Each in its turn leads; no beacon is shown before its certificate is signed."""
    async with four() as (hub, members):
        await _reached(members, 12)
        _are_one(members, 12)
        _nobody_contradicts(hub)
        assert hub.charged == []
        shares = [decode(body, BeaconShare) for _, kind, body in hub.said if kind is Kind.BEACON]
        signed = {record_of(hub, turn).signed.certificate.word for turn in range(12)}
        assert {one.word for one in shares if one.turn < 12} >= signed


async def test_three_go_on_without_the_fourth_and_it_comes_back(tmp_path: Path) -> None:
    """It is ended in the middle of a turn, twice; then it takes what it has missed, votes again, and says nothing else
    than before."""
    hub, (genesis, committee) = Hub(), office_genesis()
    async with contextlib.AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(member(hub, genesis, committee, name))
            for name in NAMES[:3]
        ]
        for _ in range(3):
            async with member(hub, genesis, committee, NAMES[3], tmp_path) as last:
                await until(lambda: last.turn >= others[0].turn - 1, "what it has missed")
                hub.said.clear()
                await until(
                    lambda: any(
                        kind is Kind.VOTE and source == last.account for source, kind, _ in hub.said
                    ),
                    "its votes",
                )
                due = others[0].turn + 4
                await _reached([last], due)
            due = others[0].turn + 4
            await _reached(others, due)
            _nobody_contradicts(hub)
        _are_one(others, due)
        assert [one.faults for one in others] == [[], [], []]


async def test_a_silent_leader_costs_a_ballot() -> None:
    """The next one leads then; whoever says nothing follows the others all the same."""
    async with four() as (hub, members):
        mute = members[2]
        hub.passes = lambda source, _to, _kind: source != mute.account
        await _reached(members, 5)
        _are_one(members, 5)
        ballots = [one.ballot for one in members[0].certificates()[:5]]
        assert ballots[2] >= 1
        _nobody_contradicts(hub)


async def test_a_liar_that_always_says_something_new_keeps_nobody_from_repeating() -> None:
    """The first words of one are lost, and the three need each other."""
    async with four(is_on=False) as (hub, members), contextlib.AsyncExitStack() as stack:
        lost, liar = set[bytes](), members[3]
        numbers = count(10)

        def is_through() -> bool:
            """Say one thing more, unless the turn is over."""
            network = members[0].core.genesis.network
            vote = Vote(network, 0, 0, next(numbers), 1, None, 3, None, bytes(64))
            body = encode(replace(vote, signature=sign(key("fourth"), vote.id)))
            for one in members[:3]:
                one.inbox.put_nowait((liar.account, Kind.VOTE, body))
            return all(one.turn for one in members[:3])

        def passes(source: bytes, _to: bytes, kind: Kind) -> bool:
            is_first = source == members[1].account and hub.said[-1][2] not in lost
            if is_first and kind is Kind.VOTE:
                lost.add(hub.said[-1][2])
            return not is_first or kind is not Kind.VOTE

        hub.passes = passes
        for one in members[:3]:
            stack.callback(asyncio.create_task(one.duty.run_slots()).cancel)
        await until(is_through, "the turn")
        assert lost


async def test_two_of_four_certify_nothing() -> None:
    """Cut into halves nobody goes on, once what is under way is over; linked again there is one history."""
    async with four() as (hub, members):
        await _reached(members, 2)
        halves = members[:2], members[2:]
        hub.cut = {frozenset((a.account, b.account)) for a in halves[0] for b in halves[1]}
        stood = max(one.turn for one in members)
        said = len(hub.said)
        await until(lambda: len(hub.said) > said + 100, "many words")
        assert max(one.turn for one in members) <= stood + 1
        hub.cut = set()
        due = stood + 5
        await _reached(members, due)
        _are_one(members, due)
        _nobody_contradicts(hub)


async def test_a_member_that_misses_each_record_asks_for_it() -> None:
    """It hears the others speak of the next turn, and without it they cannot go on: the fourth is away."""
    async with four(is_on=False) as (hub, members):
        deaf = members[0]
        hub.passes = lambda _source, to, kind: (
            to != deaf.account or kind not in (Kind.RECORD, Kind.BEACON)
        )
        async with contextlib.AsyncExitStack() as stack:
            for one in members[:3]:
                going = asyncio.create_task(one.duty.run_slots())
                stack.callback(going.cancel)
            await _reached(members[:3], 4)
        _are_one(members[:3], 4)


async def test_a_leader_that_proposes_two_values_gets_one_certified_at_most() -> None:
    """The others see both, and keep them as evidence."""
    async with four() as (hub, members):
        liar = members[1]

        def doubled(source: bytes, to: bytes, kind: Kind) -> bool:
            return source != liar.account or kind is not Kind.PROPOSAL

        hub.passes = doubled
        await until(
            lambda: any(
                kind is Kind.PROPOSAL and source == liar.account for source, kind, _ in hub.said
            ),
            "its proposal",
        )
        body = next(
            body
            for source, kind, body in hub.said
            if kind is Kind.PROPOSAL and source == liar.account
        )
        first = decode(body, Proposal)
        certificate = first.head.certificate
        second = _proposed("second", first, replace(certificate, time_ms=certificate.time_ms + 1))
        others = [one for one in members if one is not liar]
        for place, one in enumerate(others):
            both = [encode(first), encode(second)]
            for proposal in both if place % 2 else reversed(both):
                one.inbox.put_nowait((liar.account, Kind.PROPOSAL, proposal))
        hub.passes = lambda _source, _to, _kind: True
        due = certificate.turn + 4
        await _reached(members, due)
        _are_one(members, due)
        assert any(one.faults for one in others)


async def test_a_proposal_that_is_not_right_is_not_voted_for() -> None:
    """Of another history, or of weights that do not follow: the turn is the next leader's."""
    async with four() as (hub, members):
        liar = members[1]
        wrongs: list[dict[str, Any]] = [
            {"previous": b"p" * 32},
            {"theta": b"t" * 32},
            {"parent": b"p" * 32},
            {"anchor": b"a" * 32, "anchor_height": 0},
            {"time_ms": 1},
            {"slot": 0},
        ]
        sent = set[int]()

        def spoilt(source: bytes, to: bytes, kind: Kind) -> bool:
            if source != liar.account or kind is not Kind.PROPOSAL:
                return True
            first = decode(hub.said[-1][2], Proposal)
            turn = first.head.certificate.turn
            # What others said it may say again.
            if first.head.certificate.ballot or turn % 4 != 1 or turn // 4 >= len(wrongs):
                return True
            sent.add(turn)
            wrong = _proposed("second", first, replace(first.head.certificate, **wrongs[turn // 4]))
            hub.members[to].inbox.put_nowait((source, kind, encode(wrong)))
            return False

        hub.passes = spoilt
        due = 4 * len(wrongs)
        await _reached(members, due)
        _are_one(members, due)
        assert sent == set(range(1, due, 4))
        ballots = [one.ballot for one in members[0].certificates()[:due]]
        assert all(ballots[turn] >= 1 for turn in sent)


async def test_what_the_committee_has_not_signed_so_is_refused() -> None:
    """A forged certificate, one with the point at infinity, one whose `previous` was changed, the signature of another
    ballot, and the beacon of another slot."""
    async with four() as (hub, members):
        await _reached(members, 3)
        hub.cut = {frozenset((members[0].account, one.account)) for one in members[1:]}
        cut_at = members[0].turn
        due = cut_at + 3
        await _reached(members[1:], due)
        good, before = record_of(hub, members[0].turn), record_of(hub, 0)
        signed, first = good.signed, members[0]
        wrongs = [
            replace(signed, signature=bytes(96)),
            replace(signed, signature=_INFINITY, beacon=_INFINITY),
            replace(signed, certificate=replace(signed.certificate, previous=b"p" * 32)),
            replace(signed, certificate=replace(signed.certificate, ballot=7)),
            replace(signed, beacon=before.signed.beacon),
            replace(signed, beacon=_INFINITY),
        ]
        for wrong in wrongs:
            assert not await first.receive(
                members[1].account, Kind.RECORD, encode(SlotRecord(wrong, good.ids))
            )
        assert first.turn == good.signed.certificate.turn
        assert await first.receive(members[1].account, Kind.RECORD, encode(good))
        assert first.turn == good.signed.certificate.turn + 1


async def test_words_of_others_than_members_are_not_passed_on() -> None:
    """Nor is a share of a beacon whose certificate nobody has signed; whoever sends them is charged."""
    async with four(is_on=False) as (hub, members):
        one, committee = members[0], office_genesis()[1]
        network = one.core.genesis.network
        vote = Vote(network, 0, 0, 0, 1, None, 1, None, bytes(64))
        blank = BeaconShare(network, 0, 0, b"w" * 32, _INFINITY, 1, bytes(96), bytes(64))
        by_liar = [
            replace(blank, proof=proof)
            for proof in (_INFINITY, committee.shares[1].sign(b"w" * 32))
        ]
        early = [replace(word, signature=sign(key("second"), word.id)) for word in by_liar]
        words = [
            (Kind.VOTE, vote),
            (Kind.VOTE, replace(vote, signature=sign(key("first"), vote.id))),
            (Kind.VOTE, replace(vote, member=9)),
            (Kind.BEACON, blank),
            *((Kind.BEACON, word) for word in early),
        ]
        for kind, word in words:
            hub.charged.clear()
            assert not await one.receive(account("second"), kind, encode(word))
        assert not await one.receive(account("second"), Kind.VOTE, b"x")
        assert hub.charged != []
        good = replace(vote, signature=sign(key("second"), vote.id))
        assert await one.receive(account("second"), Kind.VOTE, encode(good))
        far = replace(vote, turn=5)
        far = replace(far, signature=sign(key("second"), far.id))
        assert not await one.receive(account("second"), Kind.VOTE, encode(far))


async def test_one_member_alone_closes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with a proposal of a later ballot, nor with its share of a beacon and any signature of the committee; two
    close it."""
    looks: Counter[int] = Counter()
    closes_at = OpenSlot.closes_at

    async def counted(slot: OpenSlot, newest: Certificate | None) -> int:
        due_ms = await closes_at(slot, newest)
        looks[id(slot)] += 1
        return due_ms

    monkeypatch.setattr(OpenSlot, "closes_at", counted)
    for name in ("IDLE_MS", "MAX_IDLE_MS"):
        monkeypatch.setattr(collector, name, 3_600_000)
    async with four(is_on=False) as (hub, members), contextlib.AsyncExitStack() as stack:
        members = members[:3]
        for one in members:
            stack.callback(asyncio.create_task(one.duty.run_slots()).cancel)
        await until(lambda: len(looks) == len(members), "an open slot")
        genesis, dealer = members[0].core.genesis, office_genesis()[1]
        word, numbers = b"w" * 32, dealer.committee.numbers
        proof = bls.combine({numbers[at]: dealer.shares[at].sign(word) for at in range(3)})
        blank = BeaconShare(genesis.network, 0, 0, word, proof, 3, bytes(96), bytes(64))
        certificate = Certificate(
            network=genesis.network,
            epoch=0,
            turn=0,
            parent=ZERO,
            task=genesis.filler_task(0),
            slot=0,
            ballot=3,
            previous=ZERO,
            root=merkle_root(()),
            count=0,
            theta=ZERO,
            anchor=ZERO,
            anchor_height=0,
            time_ms=1,
        )
        early = Proposal(ProposalHead(certificate, None, 3, bytes(64)), ())
        spoken: list[tuple[Kind, Proposal | BeaconShare]] = [
            (Kind.PROPOSAL, _proposed("fourth", early, certificate)),
            (Kind.BEACON, replace(blank, signature=sign(key("fourth"), blank.id))),
        ]
        for kind, said in spoken:
            looks.clear()
            for one in members:
                assert await one.receive(account("fourth"), kind, encode(said))
            await until(lambda: len(looks) == len(members), "another look at the slot")
        assert hub.said == []
        vote = Vote(genesis.network, 0, 0, 0, 1, None, 2, None, bytes(64))
        signed = replace(vote, signature=sign(key("third"), vote.id))
        assert await members[0].receive(account("third"), Kind.VOTE, encode(signed))
        await until(lambda: hub.said != [], "the leader's proposal")


async def test_what_a_decision_rests_on_is_on_disk_before_it_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also a vote that was made while an earlier one was being written: others are heard meanwhile."""
    async with four(is_on=False) as (hub, members):
        slow, loop = members[1], asyncio.get_running_loop()
        write_said, written = slow.store.own.write_said, list[int]()
        shown = list[list[int]]()

        async def others_go_on() -> None:
            """Wait until another one has shown its share, and this one has heard all that it took."""
            await until(
                lambda: any(kind is Kind.BEACON for _, kind, _ in hub.said) and slow.inbox.empty(),
                "a decision of the others",
            )

        def write(turn: int, said: list[Said]) -> None:
            if turn == 0 and not written:
                asyncio.run_coroutine_threadsafe(others_go_on(), loop).result()
            write_said(turn, said)
            written.extend(one.kind for one in said if isinstance(one, Vote) and one.member == 1)

        monkeypatch.setattr(slow.store.own, "write_said", write)

        def noted(source: bytes, to: bytes, kind: Kind) -> bool:
            if source == slow.account and kind is Kind.BEACON:
                shown.append(written[:2])
            # A record would be waiting for the disk too, and all words after it.
            return shown != [] or kind is not Kind.RECORD or to != slow.account

        hub.passes = noted
        async with contextlib.AsyncExitStack() as stack:
            for one in members:
                going = asyncio.create_task(one.duty.run_slots())
                stack.callback(going.cancel)
            await _reached(members, 1)
            await until(lambda: shown != [], "its share")
        assert shown[0] == [PREVOTE, PRECOMMIT]
        _nobody_contradicts(hub)


async def test_a_record_does_not_wait_for_the_disk_of_who_sends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slot that several have signed is with all of them, so miners need not wait until its leader has written it."""
    async with four(is_on=False) as (hub, members):
        leader, go_on = members[0], threading.Event()
        write = leader.store.write

        def slow(advance: Advance, *, durable: bool = True) -> None:
            go_on.wait()
            write(advance, durable=durable)

        monkeypatch.setattr(leader.store, "write", slow)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(go_on.set)
            for one in members:
                going = asyncio.create_task(one.duty.run_slots())
                stack.callback(going.cancel)
            await until(lambda: _has_said(hub, leader, Kind.RECORD), "the leader's record")
            assert leader.turn == 0
            go_on.set()
            await _reached(members, 2)
        _are_one(members, 2)


async def test_a_member_cannot_fill_a_turn_that_is_not_to_be_closed_yet() -> None:
    """So many of its words are kept, whatever ballots they are of; the others are heard as before."""
    async with four(is_on=False) as (_hub, members):
        one = members[0]
        seat = await one.duty._own_seat()
        assert seat is not None
        turn = OpenTurn(one.duty._bench, seat)

        def vote(place: int, ballot: int) -> Vote:
            network = one.core.genesis.network
            blank = Vote(network, 0, 0, ballot, PREVOTE, None, place, None, bytes(64))
            return replace(blank, signature=sign(key(NAMES[place]), blank.id))

        heard = [turn.hear(vote(1, ballot)) for ballot in range(MAX_WORDS + 20)]
        assert heard == [True] * MAX_WORDS + [False] * 20
        assert turn.hear(vote(2, 0))
        assert not turn.hear(vote(2, 0))


async def test_a_slot_has_the_messages_that_members_have() -> None:
    """One that a member has not got is awaited by it, and comes with the slot if need be."""
    hub, (genesis, committee) = Hub(), office_genesis("miner")
    async with contextlib.AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(member(hub, genesis, committee, name)) for name in NAMES
        ]
        deaf = members[3]
        hub.passes = lambda _source, to, kind: kind is not Kind.ITERATION or to != deaf.account
        certified = 0
        while not certified:
            await _push_message(hub, members, genesis)
            due = members[0].turn + 1
            await _reached(members, due)
            certified = max(one.count for one in members[0].certificates())
        _are_one(members, members[0].certificates()[-1].turn)


async def test_a_member_says_no_record_of_a_slot_that_it_has_not_all_of() -> None:
    """What a node has said itself is not new to it when others say it: it would not ask for what it lacks."""
    hub, (genesis, committee) = Hub(), office_genesis("miner")
    async with contextlib.AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(member(hub, genesis, committee, name)) for name in NAMES
        ]
        deaf = members[3]
        hub.passes = lambda _source, to, kind: (
            to != deaf.account or kind not in (Kind.ITERATION, Kind.RECORD)
        )
        shown = set[int]()
        while not shown:
            await _push_message(hub, members, genesis)
            due = members[0].turn + 1
            await _reached(members, due)
            shares = [
                decode(body, BeaconShare).turn
                for who, kind, body in hub.said
                if (who, kind) == (deaf.account, Kind.BEACON)
            ]
            shown = {one.turn for one in deaf.certificates() if one.count} & set(shares)
        records = [
            decode(body, SlotRecord).signed.certificate
            for who, kind, body in hub.said
            if (who, kind) == (deaf.account, Kind.RECORD)
        ]
        assert [one for one in records if one.count] == []
        _are_one(members, due)


async def _push_message(hub: Hub, members: list[Member], genesis: Genesis) -> None:
    """Let "miner" push a message of the open slot to all."""
    history = await members[0].slots.history(genesis.filler_task(0))
    message = encode(_message(genesis, history.next_slot, history.previous))
    for one in members:
        hub.send(account("miner"), one.account, Kind.ITERATION, message)


def _has_said(hub: Hub, one: Member, kind: Kind) -> bool:
    """Say whether a member has sent something of a kind to all."""
    return any((who, sent) == (one.account, kind) for who, sent, _ in hub.said)


def _proposed(name: str, first: Proposal, certificate: Any) -> Proposal:
    """Return another proposal in the place of one, signed by its member."""
    head = ProposalHead(certificate, None, first.head.member, bytes(64))
    return Proposal(replace(head, signature=sign(key(name), head.id)), first.ids)


def _message(genesis: Any, slot: int, previous: bytes) -> IterationWithMap:
    """Return a message of "miner" that moves one weight."""
    task = genesis.filler_task(0)
    data = encode_map(np.array([7]), np.array([1]))
    assert spec_of(genesis, genesis.state, task).num_weights > 7
    blank = Iteration(
        version=1,
        network=genesis.network,
        task=task,
        slot=slot,
        miner=account("miner"),
        lane=0,
        parts=1,
        map_hash=map_hash(data),
        entries=1,
        weights_end=ZERO,
        loss=0,
        previous=previous,
        commitment=ZERO,
        signature=bytes(64),
    )
    return IterationWithMap(replace(blank, signature=sign(key("miner"), blank.id)), data)
