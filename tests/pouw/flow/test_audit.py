"""Audits: each message is for one auditor or none, and stands behind everything else that the trainer has to do."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.chain.records import SUPERVISOR
from pocqueue.pouw.errors import InvalidBlock, TrainingError
from pocqueue.pouw.flow.audit import MAX_LOOKED_AT, MAX_WAITING, Audits, Choice, auditor_of
from pocqueue.pouw.flow.core import Tasks
from pocqueue.pouw.security import GradientDetector, SecuritySystem
from pocqueue.pouw.slots.task import Noise, TaskSpec
from pocqueue.pouw.wire.slots import Iteration
from tests.support.waiting import PATIENCE_S


def _made_up(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


def _message(number: int, miner: bytes = b"miner") -> Iteration:
    id_ = hashlib.sha256(bytes([number % 256, number // 256])).digest()
    return cast(Iteration, _made_up(id=id_, miner=miner, slot=number))


class _Blocks:
    """Trains over what it is given; some are false, and some cannot be trained over."""

    def __init__(self) -> None:
        self.done = asyncio.Queue[int]()

    async def train_over(self, winner: Iteration) -> str:
        self.done.put_nowait(winner.slot)
        if winner.slot == 1:
            raise InvalidBlock("re-execution", "it is false.")
        if winner.slot == 2:
            raise TrainingError("the trainer is away")
        return "it is good."


async def test_only_what_was_found_false_is_accused() -> None:
    """Not what is good, and not what could not be trained over; what is too much is left."""
    accused, told = list[int](), list[int]()
    core = _made_up(
        name="[node]",
        alert=lambda kind, text, **more: told.append(more["slot"]),
    )
    blocks, tasks = _Blocks(), Tasks("[node]")
    audits = Audits(core, cast(Any, blocks), lambda one: accused.append(one.slot))
    audits.add([Choice(_message(number), 0.0) for number in range(MAX_WAITING + 5)])
    tasks.start(audits.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            seen = [await blocks.done.get() for _ in range(MAX_WAITING)]
        assert seen == list(range(MAX_WAITING))
        assert accused == told == [1]
        assert blocks.done.empty()
    finally:
        await tasks.close()


def test_a_message_is_for_one_auditor_or_none() -> None:
    """For one in eight for somebody, by turns as the beacon will have it, and never for its own miner."""
    auditors = [b"a", b"b", b"c"]
    chosen = Counter(auditor_of(b"beacon", _message(number), auditors) for number in range(4000))
    assert set(chosen) == {None, b"a", b"b", b"c"}
    for auditor in auditors:
        assert 120 < chosen[auditor] < 220
    own = Counter(auditor_of(b"beacon", _message(number, b"a"), auditors) for number in range(4000))
    assert set(own) == {None, b"b", b"c"}
    assert own[None] == chosen[None]
    assert auditor_of(b"beacon", _message(0, b"a"), [b"a"]) is None


def _choosing(account: bytes, auditors: list[bytes], system: SecuritySystem | None) -> Audits:
    live = {one: _made_up(account=one) for one in auditors}
    state = _made_up(live_tickets=lambda role: live if role == SUPERVISOR else {})
    anchor = _made_up(id=b"anchor", height=3, state=state)
    core = _made_up(
        security=system,
        account=account,
        chain=_made_up(anchor=anchor),
        config=_made_up(enable_attack_mitigation=True),
    )
    return Audits(core, cast(Any, None), lambda _: None)


def _advance(messages: list[Iteration]) -> Any:
    slot = [_made_up(map=b"", iteration=one) for one in messages]
    return _made_up(
        slot=_made_up(messages=tuple(slot), record=_made_up(signed=_made_up(beacon=b"beacon")))
    )


_TASK = cast(TaskSpec, _made_up(num_weights=100, cap=64, noise=None))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages were given scores, which are 0, but 9 for the last one."""
    looked_at = list[int]()

    def scores(maps: list[Any], _num_weights: int) -> list[float]:
        looked_at.append(len(maps))
        return [0.0] * (len(maps) - 1) + [9.0]

    monkeypatch.setattr(GradientDetector, "scores", staticmethod(scores))
    return looked_at


@pytest.mark.usefixtures("scored")
def test_auditors_share_what_the_beacon_chooses_and_all_look_at_what_stands_out() -> None:
    """Together they have each chosen message once, and the suspicious one each."""
    auditors = [b"a", b"b", b"c"]
    messages = [_message(number) for number in range(60)]
    found = Counter[int]()
    for account in auditors:
        choices = _choosing(account, auditors, SecuritySystem("node")).choose(
            _TASK, _advance(messages)
        )
        assert choices[0].iteration.slot == 59
        found.update(choice.iteration.slot for choice in choices)
    chosen = {one.slot for one in messages if auditor_of(b"beacon", one, auditors)}
    assert found == Counter(dict.fromkeys(chosen, 1)) | Counter({59: 3})


@pytest.mark.usefixtures("scored")
def test_of_a_private_task_its_committee_alone_audits() -> None:
    """Who was not shown the noise could find nothing; so no message is chosen for one who was not."""
    members, auditors = (b"b", b"a"), [b"a", b"b", b"verifier"]
    private = cast(TaskSpec, _made_up(num_weights=100, cap=64, noise=Noise(1.0, 1.0, 4)))
    messages = [_message(number) for number in range(60)]
    found = Counter[int]()
    for account in auditors:
        audits = _choosing(account, auditors, SecuritySystem("node"))
        committee = _made_up(members=members)
        state = _made_up(committee=lambda epoch: committee if epoch == 7 else None)  # noqa: B023
        cast(Any, audits)._core.chain.tip = _made_up(state=state)
        advance = _advance(messages)
        advance.slot.record.signed.certificate = _made_up(epoch=7)
        choices = audits.choose(private, advance)
        assert (choices == []) == (account not in members)
        found.update(choice.iteration.slot for choice in choices)
    chosen = {one.slot for one in messages if auditor_of(b"beacon", one, sorted(members))}
    assert found == Counter(dict.fromkeys(chosen, 1)) | Counter({59: 2})


@pytest.mark.usefixtures("scored")
def test_who_does_not_mitigate_audits_nothing() -> None:
    """Without alerts it audits all the same."""
    audits = _choosing(b"a", [b"a"], None)
    messages = [_message(number) for number in range(60)]
    assert audits.choose(_TASK, _advance(messages))
    audits._core.config.enable_attack_mitigation = False
    assert audits.choose(_TASK, _advance(messages)) == []


def test_a_slot_of_many_messages_is_looked_at_in_part(scored: list[int]) -> None:
    """No more of them than memory and time allow, whoever sends so many."""
    messages = [_message(number) for number in range(MAX_LOOKED_AT + 1)]
    audits = _choosing(b"a", [b"a"], SecuritySystem("node"))
    assert audits.choose(_TASK, _advance(messages))
    assert scored == [MAX_LOOKED_AT]
