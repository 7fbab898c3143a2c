"""Members and candidates that lie, as processes among honest ones, and strangers that mean harm: what they say is refused,
and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.frames import LIMITS, Kind
from pocqueue.pouw.p2p.handshake import Identity
from pocqueue.pouw.p2p.messages import Reason
from tests.pouw.acceptance.founded import Founded, all_go_on, founded, newest_turn, transactions
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.p2p.listener import in_between
from tests.pouw.p2p.rogue import Rogue, linked
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.long

#: Steps of a key generation as `pocqueue pouw committee` calls them.
_PHASES = ("deals", "complaints", "answers", "waits for its office")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    """Give four supervisors in office; at the end all have one history but the last one, which is banned by then."""
    found = founded(tmp_path_factory.mktemp("network"), "miner", "peer", slot_ms=100, block_ms=2000)
    honest = [*found.supervisors[:3], *found.others]
    try:
        found.start()
        for one in found.nodes:
            one.until_past("turn", 5)
        yield found
        height = max(one.number("blockchain_height") for one in honest)
        for one in honest:
            one.until_past("anchor_height", height)
        assert_one_history(honest)
        # Who is honest again in the middle of a turn may be shown to have said two things in it.
        accused = {one["accused"] for one in transactions(honest[-1], "Evidence")}
        assert accused <= {*found.accounts}
        for one in honest:
            assert "Traceback" not in one.log.read_text(), one.name
    finally:
        found.stop()


def _alerts(one: NodeProcess) -> set[str]:
    """Return what kinds of alerts a node has."""
    return {alert["type"] for alert in one.ask("alerts")["alerts"]}


def _all_go_far(nodes: Sequence[NodeProcess]) -> None:
    """Wait until each of these has slots of which each of the four would have led one."""
    turn = newest_turn(nodes)
    for one in nodes:
        one.until_past("turn", turn + 4)


async def test_strangers_at_the_door_hold_up_no_slot(network: Founded) -> None:
    """At one member two hundred that say nothing, one that floods it, one that reads nothing, frames that are too long."""
    target, others = network.supervisors[0], network.supervisors[1:]
    where = ("127.0.0.1", target.port)
    genesis = Genesis.load(Path(network.genesis)).network

    async with contextlib.AsyncExitStack() as stack:
        found: list[Rogue] = []

        async def is_let_in() -> bool:
            key = SigningKey.generate()
            who = Identity(key, bytes.fromhex(key.public_hex), genesis, "stranger", "peer", 0)
            with contextlib.suppress(LinkError):
                found.append(await stack.enter_async_context(linked(*where, who)))
                return True
            return False

        async def stranger() -> Rogue:
            """Return a link, as soon as there is a place for one."""
            await until(is_let_in)
            return found[-1]

        async with contextlib.AsyncExitStack() as silent:
            for _ in range(200):
                _, writer = await asyncio.open_connection(*where)
                silent.callback(writer.close)
            await asyncio.to_thread(_all_go_far, network.nodes)
        (await stranger()).read_no_more()
        ping = struct.pack(">IB", 9, Kind.PING) + bytes(9)
        (await stranger()).writer.write(ping * 10 * LIMITS[Kind.PING].burst)
        wrong = await stranger()
        wrong.writer.write(struct.pack(">IB", LIMITS[Kind.TX].max_bytes + 1, Kind.TX))
        assert await wrong.end() is Reason.FAULT
        await asyncio.to_thread(wait_until, lambda: "flood" in _alerts(target), message="its alert")
        await asyncio.to_thread(_all_go_far, network.nodes)
    linked_to = {peer["account"] for peer in target.ask("peers")}
    assert {one.ask()["public_key"] for one in others} <= linked_to
    assert all("flood" not in _alerts(one) for one in others)


async def test_who_stands_in_between_gets_no_link(network: Founded, tmp_path: Path) -> None:
    """A newcomer's way to a member leads through a proxy that reads all of it: it links to nobody, and slots go on."""
    async with in_between(("127.0.0.1", network.supervisors[0].port)) as ((host, port), seen):
        way = f"--bootstrap {host}:{port}"
        newcomer = NodeProcess(tmp_path / "newcomer", "peer", network.genesis, options=way)
        newcomer.start()
        try:
            reason = "key is not proven: somebody may be in between"
            await until(lambda: newcomer.log.exists() and reason in newcomer.log.read_text())
            assert await asyncio.to_thread(newcomer.ask, "peers") == []
        finally:
            await asyncio.to_thread(newcomer.stop)
    assert Genesis.load(Path(network.genesis)).network in seen
    await asyncio.to_thread(_all_go_far, network.nodes)


def _wrong_shares(one: NodeProcess, liar: str) -> int:
    """Return how often a node has told of wrong shares of a member."""
    return sum(
        alert["source_peer"] == liar and "has given a wrong share" in alert["detail"]
        for alert in one.ask("alerts")["alerts"]
    )


def _bad_proposals(one: NodeProcess, liar: str) -> int:
    return one.log.read_text().count("The proposal of member 3 for turn")


def _forged_records(one: NodeProcess, liar: str) -> int:
    return sum(
        (alert["type"], alert["source_peer"]) == ("forged_history", liar)
        for alert in one.ask("alerts")["alerts"]
    )


@pytest.mark.parametrize(
    ("place", "lie", "noticed"),
    [
        (0, "other-ballot", _wrong_shares),
        (1, "infinity", _wrong_shares),
        (2, "old-beacon", _wrong_shares),
        (3, "other-previous", _bad_proposals),
        (3, "forged-record", _forged_records),  # the last one, as it is banned for that
    ],
    ids=["other ballot", "infinity", "old beacon", "other previous", "forged record"],
)
def test_what_a_member_cannot_say_is_refused(
    network: Founded, place: int, lie: str, noticed: Callable[[NodeProcess, str], int]
) -> None:
    """Others notice whose it is, and certify one slot after the other without it."""
    liar, account = network.supervisors[place], network.accounts[place]
    rest = [one for one in network.supervisors if one is not liar]
    before = [noticed(one, account) for one in rest]
    liar.tell(f"cheat/{lie}")
    try:
        wait_until(
            lambda: [noticed(one, account) for one in rest] != before,
            message=f"that somebody notices {lie}",
        )
        all_go_on([*rest, *network.others])
    finally:
        liar.tell("cheat/none")
    _all_go_far([*rest, *network.others])


def test_a_key_is_made_among_liars(tmp_path: Path) -> None:
    """Of five one is silent, one deals a wrong share, one complains falsely: the four that speak are in office, and each has
    a share that is good.
    """
    found = founded(
        tmp_path,
        "miner",
        num=5,
        changes={0: "complains-falsely", 2: "deals-wrongly", 4: "silent"},
        slot_ms=100,
    )
    a, b, c, d, _ = found.accounts
    try:
        found.start()
        for one in found.nodes:
            one.until_past("turn", 3)
        assert found.others[0].ask()["committee"] == [a, b, c, d]
        said = {
            kind: {one["sender"] for one in transactions(found.others[0], kind)}
            for kind in ("Complaint", "Answer", "Confirm")
        }
        # The wrong share is the silent one's at the first try, and then d's.
        assert (said["Complaint"], said["Answer"]) == ({a, d}, {b, c})
        assert {a, b, c, d} <= said["Confirm"]
        # Three of four make a signature: without b it is a's, c's and d's.
        away = found.supervisors[1]
        away.kill()
        all_go_on([found.supervisors[0], *found.supervisors[2:], *found.others])
        away.start()
        all_go_on(found.nodes)
        found.supervisors[0].kill()
        all_go_on([*found.supervisors[1:], *found.others])
    finally:
        found.stop()


def test_founders_that_are_killed_while_their_key_is_made_have_their_shares(tmp_path: Path) -> None:
    """Another one in each step, and each is started again at once: all four are in office, any three of them sign."""
    found = founded(tmp_path, "miner", slot_ms=100)
    watching = found.others[0]

    def phase() -> str | None:
        making = (watching.ask("committee") or {"generation": None})["generation"]
        return None if making is None else str(making["phase"])

    try:
        found.start()
        for victim, step in zip(found.supervisors, _PHASES, strict=True):
            wait_until(lambda step=step: phase() == step, message=f"step {step}")  # type: ignore[misc]
            victim.kill()
            victim.start()
        for one in found.nodes:
            one.until_past("turn", 3)
        assert watching.ask()["committee"] == found.accounts
        for away in found.supervisors:
            away.kill()
            rest = [one for one in found.nodes if one is not away]
            all_go_on(rest)
            away.start()
            all_go_on(found.nodes)
        assert_one_history(found.nodes)
        assert not transactions(watching, "Evidence")
    finally:
        found.stop()
