"""What is shown of evidence in a chain: in sentences, checked again, with what it cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from pocqueue.pouw.chain.records import KeyGeneration, generation_key
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import UnknownEvidence
from pocqueue.pouw.flow.security_views import SecurityViews, sentences
from pocqueue.pouw.flow.watch import Watch
from pocqueue.pouw.security import SecuritySystem
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.transactions import Evidence, Transaction
from tests.pouw.offences import found_false, message, proposal, vote
from tests.pouw.support import GENESIS, account, after, founded, order, signed


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (found_false(), (account("miner").hex(), "slot 9", "committee of epoch 0")),
        (TwoMessages(message(), message(loss=1)), (account("miner").hex(), "two messages")),
        (
            TwoVotes(vote(), vote(value=b"v" * 32)),
            ("Member 0", "prevoted twice", "turn 5", "nothing", (b"v" * 8).hex()),
        ),
        (TwoVotes(vote(kind=2), vote(kind=2, value=bytes(32))), ("precommitted twice",)),
        (TwoProposals(proposal(), proposal(count=1)), ("two proposals", "turn 5")),
    ],
)
def test_each_kind_is_said_in_sentences(
    shown: Fault | TwoMessages | TwoVotes | TwoProposals, words: tuple[str, ...]
) -> None:
    """Who did what, where, and why that is against the rules."""
    said = " ".join(sentences(Evidence(shown)))
    assert all(word in said for word in words), said
    assert said.endswith(".")


class _Node:
    """A node at a state; its blocks have these transactions at these heights."""

    def __init__(self, state: State, blocks: dict[int, list[Transaction]]) -> None:
        async def in_chain(work: Any, *args: Any) -> Any:
            return work(*args)

        async def in_office() -> Any:
            return state.committee(0)

        chain = SimpleNamespace(
            tip=SimpleNamespace(state=state),
            block_at=lambda height: SimpleNamespace(transactions=blocks.get(height, [])),
        )
        core: Any = SimpleNamespace(
            genesis=GENESIS,
            chain=chain,
            in_chain=in_chain,
            account=account("miner"),
            config=SimpleNamespace(node_id="miner_1"),
            security=SecuritySystem("node"),
            network=SimpleNamespace(
                peers=[SimpleNamespace(account=account("supervisor"), node_id="supervisor_1")]
            ),
        )
        self.core = core
        slots = cast(Any, SimpleNamespace(committee=in_office, next_turn=0))
        self.views = SecurityViews(core, slots, Watch(core, slots))


async def test_evidence_is_found_by_its_transaction_and_by_the_culprit() -> None:
    """With who was paid, and what the rest is for."""
    state = founded("finder")
    ordered = signed("finder", order(), 1)
    state = after(state, ordered)
    shown = signed("finder", Evidence(found_false(task=ordered.id)), 2)
    state = after(state, shown)
    node = _Node(state, {state.clock.height: [shown]})
    [by_id] = await node.views.evidence(shown.id.hex())
    [by_account] = await node.views.evidence(account("miner").hex())
    assert by_id == by_account
    assert (by_id["holds"], by_id["kind"], by_id["role"]) == (True, "Fault", "miner")
    assert (by_id["stake"], by_id["bounty"], by_id["to_task"], by_id["burnt"]) == (100, 20, 80, 0)
    assert by_id["finder"] == account("finder").hex()
    assert by_id["task"] == ordered.id.hex()
    for unknown in (bytes(32), account("finder")):
        with pytest.raises(UnknownEvidence, match="no evidence"):
            await node.views.evidence(unknown.hex())


async def test_what_does_not_hold_is_said() -> None:
    """Whatever the chain has taken; and if the block is not there any more, that."""
    state = founded("finder")
    shown = signed("finder", Evidence(found_false()), 1)
    state = after(state, shown)
    false = msgspec.structs.replace(found_false(), signature=bytes(96))
    other = msgspec.structs.replace(shown, body=Evidence(false))
    # As if it were the one that has been paid for.
    other.__dict__["id"] = shown.id
    [found] = await _Node(state, {state.clock.height: [other]}).views.evidence(shown.id.hex())
    assert found["holds"] is None
    assert "not that of epoch 0" in found["checked"]
    [found] = await _Node(state, {}).views.evidence(shown.id.hex())
    assert (found["holds"], found["kind"], found["shows"]) == (None, None, [])


async def test_a_committee_is_shown_with_names_and_the_key_in_the_making() -> None:
    """Of those that have a link; the alarm is the operator's."""
    state = founded()
    draft = state.child()
    making = KeyGeneration(1, state.clock.height, (), 3, ())
    draft.put(generation_key(1), making)
    node = _Node(draft.seal(), {})
    node.core.security["byzantine_tolerance"].threshold = 0.25
    found = await node.views.committee()
    assert (found["epoch"], found["threshold"], found["alarm_share"]) == (0, 1, 0.25)
    [member] = found["members"]
    assert (member["name"], member["is_self"], member["heard_s"]) == ("supervisor_1", False, None)
    assert found["generation"]["phase"] == "deals"


async def test_alerts_are_newest_first() -> None:
    """With their times in words; a node that does not watch has none."""
    node = _Node(founded(), {})
    for detail in ("first", "second"):
        node.core.security.tell(
            "flood", source_peer="", detail=detail, height=1, slot=0, evidence=""
        )
    found = node.views.alerts()
    assert [one["detail"] for one in found["alerts"]] == ["second", "first"]
    assert found["threat_level"] == "MEDIUM"
    assert found["alerts"][0]["time"].endswith("+00:00")
    node.core.security = None
    assert node.views.alerts() == {"threat_level": None, "alerts": []}
