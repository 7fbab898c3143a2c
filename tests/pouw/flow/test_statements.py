"""A committee signs what enough of its members find right, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.records import MINER, VERIFIER
from pocqueue.pouw.errors import NotSigned, PeerFault
from pocqueue.pouw.flow import statements as statements_module
from pocqueue.pouw.flow.core import Tasks
from pocqueue.pouw.flow.statements import Statements
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.evidence import Fault
from pocqueue.pouw.wire.statements import UNSIGNED, StatementShare, statement_digest
from pocqueue.pouw.wire.transactions import ROLES, Close
from tests.pouw.flow.committees import dealt
from tests.pouw.flow.parts import PEER
from tests.pouw.offences import found_false
from tests.pouw.support import GENESIS, account, key
from tests.support.waiting import PATIENCE_S, until

_NAMES = ("first", "second", "third", "fourth")
_DEALT = dealt([account(name) for name in _NAMES])
_CLOSE = Close(0, b"t" * 32, 0, 8, b"w" * 32, 9, 10, 1, (), UNSIGNED)
_DIGEST = statement_digest(GENESIS.network, _CLOSE)
Judge = Callable[[Close], Awaitable[bool]]


class _State:
    """A chain's state in which the committee is in office; others have the ticket that they are called by, if any."""

    office = SimpleNamespace(epoch=0)

    def committee(self, epoch: int) -> Any:
        return _DEALT.committee if epoch == 0 else None

    def live_ticket(self, who: bytes, role: int) -> bytes | None:
        own = {account(ROLES[VERIFIER]): VERIFIER, account(ROLES[MINER]): MINER}
        return b"t" * 32 if who != account("stranger") and own.get(who, role) == role else None


class _Node:
    """A node's statements; what it pushes comes to all others."""

    def __init__(self, name: str, hub: list[_Node], judge: Judge | None) -> None:
        self.name, self.hub, self.pushed = name, hub, list[tuple[Kind, bytes]]()
        self.tasks = Tasks(name)
        state = SimpleNamespace(tip=SimpleNamespace(state=_State()))
        core: Any = SimpleNamespace(
            name=name,
            genesis=GENESIS,
            key=key(name),
            account=account(name),
            chain=state,
            network=self,
            in_chain=self._in_chain,
        )
        self.statements = Statements(core, self.tasks, _DEALT.seat(account(name)))
        if judge is not None:
            self.statements.judges |= {Close: judge, Fault: judge}
        hub.append(self)

    async def _in_chain(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    def push(self, kind: Kind, body: bytes) -> int:
        """See `Network.push`."""
        self.pushed.append((kind, body))
        for other in self.hub:
            if other is not self:
                other.tasks.start(other.take(kind, body))
        return len(self.hub) - 1

    async def take(self, kind: Kind, body: bytes) -> None:
        """Take what another one pushes."""
        if kind is Kind.MOTION:
            await self.statements.receive_motion(PEER, body)
        elif (kind, body) not in self.pushed and self.statements.receive_share(PEER, body):
            self.push(kind, body)


@contextlib.asynccontextmanager
async def _committee(*answers: bool, **others: Judge | None) -> Any:
    """Open a node for each member, which answers so, and others by their names."""
    hub = list[_Node]()
    for name, answer in zip(_NAMES, answers, strict=False):

        async def judge(close: Close, answer: bool = answer) -> bool:
            return answer

        _Node(name, hub, judge)
    for name, other in others.items():
        _Node(name, hub, other)
    try:
        yield hub
    finally:
        await asyncio.gather(*(one.tasks.close() for one in hub))


def _is_signed(signature: bytes) -> bool:
    return bls.verify(_DEALT.committee.group_key, _DIGEST, signature)


async def test_three_of_four_sign_what_a_member_moves() -> None:
    """The fourth one finds it wrong."""
    async with _committee(True, True, False, True) as nodes:
        assert _is_signed(await nodes[0].statements.sign(_CLOSE))


async def test_a_verifier_may_accuse() -> None:
    """Though it is no member; then three of them have to answer. It closes no task."""
    async with _committee(False, True, True, True, verifier=None) as nodes:
        fault = found_false()
        signature = await nodes[-1].statements.sign(fault)
        digest = statement_digest(GENESIS.network, fault)
        assert bls.verify(_DEALT.committee.group_key, digest, signature)
        with pytest.raises(NotSigned, match="0 of the 3"):
            await nodes[-1].statements.sign(_CLOSE, 0.2)


async def test_a_miner_accuses_nobody() -> None:
    """Its motions are neither judged nor passed on."""
    async with _committee(True, True, True, True, miner=None) as nodes:
        for statement in (found_false(), _CLOSE):
            with pytest.raises(NotSigned, match="0 of the 3"):
                await nodes[-1].statements.sign(statement, 0.2)
        assert [one.pushed for one in nodes[:-1]] == [[]] * 4


async def test_two_may_move_the_same() -> None:
    """Each counts the other one's share, though nobody else is there but a third."""
    async with _committee(True, True, True) as nodes:
        both = await asyncio.gather(
            *(one.statements.sign(_CLOSE, 30.0) for one in nodes[:2]), return_exceptions=True
        )
        assert [_is_signed(one) for one in both if isinstance(one, bytes)] == [True, True]


async def test_two_of_four_sign_nothing() -> None:
    """Nor is a motion of somebody without a ticket judged or passed on."""
    async with _committee(True, True, False, False, stranger=None) as nodes:
        with pytest.raises(NotSigned, match="2 of the 3 members"):
            await nodes[0].statements.sign(_CLOSE, 0.2)
        with pytest.raises(NotSigned, match="epoch 7"):
            await nodes[0].statements.sign(replace(_CLOSE, epoch=7), 0.2)
        for one in nodes:
            one.pushed.clear()
        with pytest.raises(NotSigned, match="0 of the 3"):
            await nodes[-1].statements.sign(replace(_CLOSE, slots=9), 0.2)
        assert [one.pushed for one in nodes[:-1]] == [[]] * 4


async def test_each_statement_is_judged_once_and_answered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To whoever repeats it because an answer was lost."""
    monkeypatch.setattr(statements_module, "REPEAT_S", 0.05)
    monkeypatch.setattr(statements_module, "_PASS_S", 0.0)
    asked = list[Close]()

    async def judge(close: Close) -> bool:
        asked.append(close)
        return True

    async with _committee(outsider=None, second=judge) as nodes:
        with pytest.raises(NotSigned, match="1 of the 3"):
            await nodes[0].statements.sign(_CLOSE, 0.3)
        assert asked == [_CLOSE]
        assert [kind for kind, _ in nodes[1].pushed].count(Kind.SHARE) > 1


async def test_a_share_that_is_not_its_members_is_refused() -> None:
    """One of another member, of another statement, or of nobody; one of a statement that nobody moved goes nowhere."""
    async with _committee(True, True) as nodes:
        statements = nodes[0].statements
        good = StatementShare(GENESIS.network, 0, _DIGEST, 1, _DEALT.shares[1].sign(_DIGEST))
        assert not statements.receive_share(PEER, encode(good))
        signing = asyncio.create_task(statements.sign(_CLOSE, 0.5))
        await statements.judged.heard(0.1)
        for wrong in (
            replace(good, member=2),
            replace(good, share=_DEALT.shares[1].sign(b"d" * 32)),
            replace(good, share=b"\xc0" + bytes(95)),
        ):
            with pytest.raises(PeerFault, match="not that of member"):
                statements.receive_share(PEER, encode(wrong))
        assert not statements.receive_share(PEER, encode(replace(good, member=9)))
        assert statements.receive_share(PEER, encode(good))
        with pytest.raises(NotSigned, match="2 of the 3"):
            await signing


async def test_what_is_no_motion_is_held_against_its_sender() -> None:
    """Nor one with another's signature; a wrong one of another network likewise."""
    async with _committee(True) as nodes:
        statements = nodes[0].statements
        motion = statements._motion(_CLOSE)
        for body in (
            b"x",
            encode(replace(motion, signature=bytes(64))),
            encode(replace(motion, network=b"n" * 32)),
        ):
            with pytest.raises(PeerFault):
                await statements.receive_motion(PEER, body)
        assert decode(encode(motion), type(motion)) == motion


def _num_passed(node: _Node) -> int:
    return [kind for kind, _ in node.pushed].count(Kind.MOTION)


async def test_who_moves_much_is_passed_on_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below that of a link, or all that pass it on would be taken for a flood. Its old motions, repeated by anybody,
    do not keep out a new one, nor another's."""
    monkeypatch.setattr(statements_module, "_PASS_S", 0.0)
    async with _committee(True, True, verifier=None) as (member, other, verifier):
        statements = verifier.statements
        bodies = [encode(statements._motion(found_false(slot=slot))) for slot in range(64)]
        for _ in range(4):
            for body in bodies:
                await member.statements.receive_motion(PEER, body)
        began = _num_passed(member)
        assert 8 <= began < 64
        await member.statements.receive_motion(PEER, encode(other.statements._motion(_CLOSE)))
        assert _num_passed(member) == began + 1


async def test_old_motions_keep_no_new_one_of_their_sender_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has heard them may repeat them as often as he likes."""
    monkeypatch.setattr(statements_module, "_PASS_S", 0.0)
    async with _committee(True, verifier=None) as nodes:
        member, statements = nodes[0].statements, nodes[1].statements
        old, new = (encode(statements._motion(found_false(slot=slot))) for slot in (1, 2))
        for _ in range(40):
            await member.receive_motion(PEER, old)
        assert _num_passed(nodes[0]) < 40
        await member.receive_motion(PEER, new)
        assert nodes[0].pushed[-1] == (Kind.MOTION, new)


async def test_who_accuses_wrongly_is_not_heard_any_more() -> None:
    """After four times, of which nobody else is worse off: neither what is already waiting nor what comes is judged."""
    judged = list[object]()

    async def judge(statement: object) -> bool:
        judged.append(statement)
        return False

    async with _committee(verifier=None, first=judge) as (verifier, member):
        statements = verifier.statements
        for slot in range(7):
            body = encode(statements._motion(found_false(slot=slot)))
            await member.statements.receive_motion(PEER, body)
        await until(lambda: not member.tasks._running)
        assert len(judged) == 4
        num_passed = _num_passed(member)
        body = encode(statements._motion(found_false(slot=8)))
        assert not await member.statements.receive_motion(PEER, body)
        assert (_num_passed(member), member.tasks._running) == (num_passed, set())


async def test_the_end_of_a_task_does_not_wait_for_accusations() -> None:
    """One that takes long to train over, say."""
    gate = asyncio.Event()

    async def judge(statement: object) -> bool:
        if isinstance(statement, Fault):
            await gate.wait()
        return True

    async with _committee(True, verifier=None, second=judge, third=judge) as nodes:
        for one in nodes[2:]:
            body = encode(nodes[1].statements._motion(found_false()))
            await one.statements.receive_motion(PEER, body)
        assert _is_signed(await nodes[0].statements.sign(_CLOSE, PATIENCE_S))
        gate.set()


async def test_a_node_that_judges_nothing_passes_on_new_motions_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many their sender has moved before: the oldest are forgotten."""
    monkeypatch.setattr(statements_module, "_OF_SENDER", (1e9, 1000))
    monkeypatch.setattr(statements_module, "_OF_ALL", (1e9, 1000))
    async with _committee(verifier=None, outsider=None) as (verifier, outsider):
        for slot in range(70):
            body = encode(verifier.statements._motion(found_false(slot=slot)))
            await outsider.statements.receive_motion(PEER, body)
        assert _num_passed(outsider) == 70
