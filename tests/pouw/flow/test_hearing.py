"""Words of a committee's members as they come in: what they show of turns that are not here."""

from __future__ import annotations

from msgspec.structs import replace

from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.flow.hearing import Hearing
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.votes import PREVOTE, Vote
from tests.pouw.blocks import GENESIS
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import PEER, Signed, follow, parts
from tests.pouw.support import key


def _vote(turn: int, epoch: int = 0) -> bytes:
    blank = Vote(GENESIS.network, epoch, turn, 0, PREVOTE, None, 0, None, bytes(64))
    return encode(replace(blank, signature=sign(key("supervisor"), blank.id)))


async def test_one_word_of_the_next_turn_is_enough_to_ask_for_this_one() -> None:
    """It may be the last: what was heard once is not heard again, and the others wait for this node's say."""
    async with parts() as node:
        hearing = Hearing(node.core, node.slots, node.missing.append)
        assert await hearing.receive(PEER, Kind.VOTE, _vote(1))
        assert node.missing == []  # its record may be on its way
        await until(lambda: node.missing == [PEER], "a question")


async def test_who_has_the_turn_by_then_asks_nobody() -> None:
    """Its record was on its way."""
    async with parts() as node:
        hearing = Hearing(node.core, node.slots, node.missing.append)
        signed = Signed()
        signed.go_on(1)
        assert await hearing.receive(PEER, Kind.VOTE, _vote(1))
        await follow(node, signed)
        assert await hearing.receive(PEER, Kind.VOTE, _vote(2))
        await until(lambda: node.missing == [PEER], "a question about the turn after it")


async def test_words_of_a_later_epoch_are_a_reason_to_ask() -> None:
    """The turn before was the last one of this epoch, and the next one waits for this node: nobody pushes anything more."""
    for is_founded in (True, False):
        async with parts(is_founded=is_founded) as node:
            hearing = Hearing(node.core, node.slots, node.missing.append)
            assert not await hearing.receive(PEER, Kind.VOTE, _vote(1, epoch=1))
            await until(lambda: node.missing == [PEER], "a question")
