"""A private task's noise: shown to the committee, which executes its messages again; others rely on it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.chain.records import MINER
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.noise import seal_noise
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import ChainError, PeerFault
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.task import LapSlot, Noise, TaskSpec
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.noise import SealedNoise
from pocqueue.pouw.wire.slots import noise_digest
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import FILLER, GENESIS, sent, trained
from tests.pouw.flow.nodes import begin, node, quick_genesis, running
from tests.pouw.flow.parts import PEER, Parts, parts, succeeded
from tests.pouw.support import account, group_key, key, ticket
from tests.support.waiting import PATIENCE_S

SECRET = group_key("noisy")
DEALER = Dealer(key("supervisor"), GENESIS.network)


def _with_noisy_miner(parts: Parts) -> None:
    """Give "noisy" a miner's ticket with a key, in block 2."""
    chain = parts.core.chain
    possession = SECRET.prove_possession(account("noisy"))
    body = replace(ticket(MINER), group_key=SECRET.public_key, possession=possession)
    block = trained(chain.tip, (sent("noisy", 0, Faucet()), sent("noisy", 1, body)))
    chain.add(block, now_ms())


def _member(parts: Parts) -> Noises:
    """Return what the supervisor in office has of it."""
    core = dataclasses.replace(parts.core, key=key("supervisor"), account=account("supervisor"))
    return Noises(core, parts.slots, parts.store, group_key("group"), DEALER)


def _sealed(slot: int = 0, lane: int = 0, miner: str = "noisy", epoch: int = 0) -> SealedNoise:
    place = (GENESIS.network, FILLER, slot, lane)
    return seal_noise(key(miner), SECRET, place, epoch, [DEALER.seal_key])


def _private(task: TaskSpec, *own: int) -> tuple[TaskSpec, SlotHistory]:
    """Return a task with noise, and its history: its lanes have messages in these slots of the open lap."""
    private = replace(task, noise=Noise(1.0, 1.0, 4))
    certified = [SimpleNamespace(slot=slot) for slot in own]
    return private, cast(Any, SimpleNamespace(task=private, own=lambda _lane: certified))


async def test_a_member_knows_the_noise_that_it_was_shown() -> None:
    """For each message that counts in the lap; without it nothing can be said of that."""
    async with parts() as one:
        _with_noisy_miner(one)
        member = _member(one)
        assert await member.receive(PEER, encode(_sealed(0)))
        assert not await member.receive(PEER, encode(_sealed(0)))
        assert await member.receive(PEER, encode(_sealed(2)))
        plain = (await one.slots.history(FILLER)).task
        task, history = _private(plain)
        lap = [LapSlot(0, b"", b"m", 1), LapSlot(1, b"", None, 1), LapSlot(2, b"", None, 1)]
        found = member.filled(task, lap, account("noisy"), 0)
        due = [SECRET.sign(noise_digest(GENESIS.network, FILLER, slot, 0)) for slot in (0, 2)]
        assert [slot.noise for slot in found] == [due[0], None, due[1]]
        lanes = [(slot, (account("noisy"), lane)) for slot, lane in ((0, 0), (1, 0), (0, 1))]
        assert [member.is_shown(history, *at) for at in lanes] == [True, False, False]
        with pytest.raises(ChainError, match=r"the noise of slot 0 of .* is not known"):
            member.filled(task, lap, account("miner"), 0)
        assert member.is_shown(await one.slots.history(FILLER), 5, (account("miner"), 0))


async def test_whoever_has_no_seat_passes_it_on() -> None:
    """And knows nothing; it judges messages of other tasks alone."""
    async with parts() as one:
        _with_noisy_miner(one)
        assert await one.noises.receive(PEER, encode(_sealed()))
        plain = (await one.slots.history(FILLER)).task
        task = replace(plain, noise=Noise(1.0, 1.0, 4))
        with pytest.raises(ChainError, match="its miner shows it to the committee"):
            one.noises.filled(task, [LapSlot(0, b"", b"m", 1)], account("noisy"), 0)
        assert [one.noises.may_judge(each, 0) for each in (task, plain)] == [False, True]


async def test_a_member_that_is_started_again_can_still_execute_again(tmp_path: Path) -> None:
    """What it was shown is on its disk, for as long as the maps are."""
    async with parts(tmp_path) as one:
        _with_noisy_miner(one)
        assert await _member(one).receive(PEER, encode(_sealed(0)))
    async with parts(tmp_path, is_founded=False) as one:
        task, history = _private((await one.slots.history(FILLER)).task)
        member, lap = _member(one), [LapSlot(0, b"", b"m", 1)]
        assert member.is_shown(history, 0, (account("noisy"), 0))
        [found] = member.filled(task, lap, account("noisy"), 0)
        assert found.noise == SECRET.sign(noise_digest(GENESIS.network, FILLER, 0, 0))
        one.store.prune(FILLER, 1)
        with pytest.raises(ChainError, match="is not known"):
            member.filled(task, lap, account("noisy"), 0)


async def test_no_message_is_certified_whose_lap_was_not_shown() -> None:
    """Else none of those who certify a lap might be able to execute it again, and its block would wait for ever."""
    async with parts() as one:
        _with_noisy_miner(one)
        member, lane = _member(one), (account("noisy"), 0)
        for slot in (0, 2):
            assert await member.receive(PEER, encode(_sealed(slot)))
        plain = (await one.slots.history(FILLER)).task
        laps = [_private(plain, *own)[1] for own in ((), (0,), (0, 1))]
        assert [member.is_shown(lap, 2, lane) for lap in laps] == [True, True, False]


async def test_a_new_committee_is_shown_the_open_slot_and_judges_what_it_certifies() -> None:
    """The noise is sealed for it anew; blocks of the epoch before it takes on the word of who was in office."""
    async with parts() as one:
        _with_noisy_miner(one)
        assert await one.noises.receive(PEER, encode(_sealed()))
        await succeeded(one)
        tip = one.core.chain.tip
        await one.blocks.settle_anchor(tip.id, tip.height)
        assert not await one.noises.receive(PEER, encode(_sealed()))
        assert await one.noises.receive(PEER, encode(_sealed(epoch=1)))
        assert not await one.noises.receive(PEER, encode(_sealed(epoch=1)))
        task, _ = _private((await one.slots.history(FILLER)).task)
        heir = dataclasses.replace(one.core, key=key("heir"), account=account("heir"))
        new = Noises(heir, one.slots, one.store, group_key("heir"), DEALER)
        assert [
            [it.may_judge(task, epoch) for epoch in (0, 1, 2)] for it in (_member(one), new)
        ] == [
            *([True, False, False], [False, True, False]),
        ]


async def test_what_is_not_of_this_slot_is_not_passed_on() -> None:
    """Nor of a lane that there is not; what its miner has not signed is held against whoever sends it."""
    async with parts() as one:
        _with_noisy_miner(one)
        for other in (_sealed(9), _sealed(lane=1), _sealed(miner="nobody")):
            assert not await one.noises.receive(PEER, encode(other))
        with pytest.raises(PeerFault, match="a NOISE: signature"):
            await one.noises.receive(PEER, encode(replace(_sealed(), seal_key=bytes(32))))
        with pytest.raises(PeerFault):
            await one.noises.receive(PEER, b"\xc0")


@pytest.mark.long
async def test_a_private_task_is_trained_and_its_blocks_are_executed_again(tmp_path: Path) -> None:
    """By the supervisor, which was shown the noise; the client, a verifier, takes them when they are final."""
    network = quick_genesis(tmp_path)
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        miner = node("miner", NodeRole.MINER, network, supervisor)
        client = node("client", NodeRole.PEER, network, supervisor)
        async with running(client, miner):
            await begin(miner)
            await client.start()
            privacy = {
                "noise_multiplier": 30,
                "max_norm": 0.5,
                "epsilon": 20,
                "delta": 1e-5,
                "max_messages": 2,
            }
            requirements = {"hidden": [8], "privacy": privacy, "min_accuracy": 1.0}
            task = MLTask(
                *("private", "image_classification", "digits"),
                model_requirements={**requirements, "batch_size": 16, "max_epochs": 100},
                reward_amount=50.0,
                deadline=int(time.time() + 3600),
            )
            assert await client.submit_task(task, fee=10.0)
            assert supervisor._life is not None
            core, blocks = supervisor._life._core, supervisor._life._blocks
            judged: list[bytes] = []
            train_over = blocks.train_over

            async def watched(winner: Any, patience_s: float = 0.0) -> str:
                said = await train_over(winner, patience_s)
                judged.append(winner.task)
                return said

            blocks.train_over = watched  # type: ignore[method-assign]
            async with asyncio.timeout(PATIENCE_S):
                while not any(not core.genesis.is_filler(task) for task in judged):
                    await core.chain_changed.heard(1.0)
                found = next(task for task in judged if not core.genesis.is_filler(task))
                record = core.chain.tip.state.task(found)
                assert record is not None
                assert record.name == "private"
