"""What there is to see of the committee, of alerts, and of evidence, as plain values. Coins are in PAI here."""

from __future__ import annotations

import datetime
from typing import Any

from pocqueue.pouw.chain.amounts import pai
from pocqueue.pouw.chain.evidence import verify_again
from pocqueue.pouw.chain.office import due_step
from pocqueue.pouw.chain.records import KeyGeneration, Slash
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import InvalidTransaction, UnknownEvidence
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.watch import Watch
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.transactions import ROLES, Answer, Complaint, Deal, Evidence
from pocqueue.pouw.wire.votes import PREVOTE, Vote

#: Steps of a key generation, as people call them.
_STEPS: dict[type, str] = {Deal: "deals", Complaint: "complaints", Answer: "answers"}


class SecurityViews:
    """Reads what a node knows of who may be trusted.

    Args:
        core, slots, watch: of the node.
    """

    def __init__(self, core: Core, slots: SlotFlow, watch: Watch) -> None:
        self._core, self._slots, self._watch = core, slots, watch

    async def committee(self) -> dict[str, Any]:
        """Return who certifies now, who of them takes part, and the making of the next committee's key."""
        core, state = self._core, self._core.chain.tip.state
        committee = await self._slots.committee()
        members = [] if committee is None else self._watch.members(committee)
        names = {peer.account: peer.node_id for peer in core.network.peers}
        names[core.account] = core.config.node_id
        bad = sum(one.is_silent or one.is_faulty for one in members)
        generation = state.generation
        return {
            "epoch": None if committee is None else committee.epoch,
            "threshold": None if committee is None else committee.threshold,
            "group_key": None if committee is None else committee.group_key.hex(),
            "members": [
                {
                    "place": place,
                    "account": one.account.hex(),
                    "name": names.get(one.account),
                    "is_self": one.account == core.account,
                    "heard_s": one.heard_s,
                    "is_silent": one.is_silent,
                    "is_faulty": one.is_faulty,
                }
                for place, one in enumerate(members)
            ],
            "bad_share": bad / len(members) if members else 0.0,
            "alarm_share": (
                None if core.security is None else core.security["byzantine_tolerance"].threshold
            ),
            "generation": None if generation is None else self._generation(state, generation),
        }

    def alerts(self) -> dict[str, Any]:
        """Return what was noticed since the start, newest first, and how high the threat is."""
        security = self._core.security
        if security is None:
            return {"threat_level": None, "alerts": []}
        return {
            "threat_level": security["threat_level"],
            "alerts": [one | {"time": _iso(one["time"])} for one in reversed(security["alerts"])],
        }

    async def evidence(self, identifier: str) -> list[dict[str, Any]]:
        """Return what evidence in the chain shows, oldest first.

        Args:
            identifier: of the transaction that has it, 64 hex digits, or the culprit's account, 66.

        Raises:
            UnknownEvidence: there is none.
        """
        wanted, state = bytes.fromhex(identifier), self._core.chain.tip.state
        found = [
            (culprit, slash)
            for culprit, slashes in state.slashes().items()
            for slash in slashes
            if wanted in (culprit, slash.transaction)
        ]
        if not found:
            raise UnknownEvidence(identifier)
        found.sort(key=lambda item: item[1].height)
        return [await self._shown(state, culprit, slash) for culprit, slash in found]

    async def _shown(self, state: State, culprit: bytes, slash: Slash) -> dict[str, Any]:
        core = self._core
        block = await core.in_chain(core.chain.block_at, slash.height)
        sent = [] if block is None else block.transactions
        bodies = [one.body for one in sent if one.id == slash.transaction]
        body = next((one for one in bodies if isinstance(one, Evidence)), None)
        holds, checked = await core.in_chain(self._checked, state, body)
        rest = slash.stake - slash.bounty
        return {
            "transaction": slash.transaction.hex(),
            "height": slash.height,
            "culprit": culprit.hex(),
            "kind": None if body is None else type(body.fault).__name__,
            "shows": [] if body is None else sentences(body),
            "holds": holds,
            "checked": checked,
            "ticket": slash.ticket.hex(),
            "role": ROLES[slash.role],
            "stake": pai(slash.stake),
            "finder": slash.finder.hex(),
            "bounty": pai(slash.bounty),
            "task": None if slash.task is None else slash.task.hex(),
            "to_task": 0.0 if slash.task is None else pai(rest),
            "burnt": pai(rest) if slash.task is None else 0.0,
        }

    def _checked(self, state: State, body: Evidence | None) -> tuple[bool | None, str]:
        if body is None:
            return None, "The chain has turned meanwhile: ask again."
        try:
            verify_again(self._core.genesis, state, body)
        except InvalidTransaction as exc:
            # An old committee may be forgotten: then nobody can say whose signature it is.
            return (None if exc.rule in ("committee", "evidence") else False), str(exc)
        return True, "All signatures are whose they have to be."

    def _generation(self, state: State, generation: KeyGeneration) -> dict[str, Any]:
        step = due_step(generation, state.clock.height + 1)
        return {
            "epoch": generation.epoch,
            "height": generation.height,
            "phase": "waits for its office" if step is None else _STEPS[step],
            "candidates": [one.account.hex() for one in generation.candidates],
            "threshold": generation.threshold,
        }


def sentences(evidence: Evidence) -> list[str]:
    """Return what evidence shows, for people."""
    match evidence.fault:
        case Fault() as one:
            return [
                (
                    f"Account {one.miner.hex()} signed message {one.message.hex()[:16]} for lane {one.lane} in slot {one.slot} "
                    f"of task {one.task.hex()[:12]}."
                ),
                "The training in it was done over, and its map or its weights are not what its samples give.",
                f"The committee of epoch {one.epoch} did that itself, and has signed so.",
            ]
        case TwoMessages(first=first, second=second):
            return [
                (
                    f"Account {first.miner.hex()} signed two messages for lane {first.lane} in slot {first.slot} of task "
                    f"{first.task.hex()[:12]}, behind the same certificate: {first.id.hex()[:16]} and {second.id.hex()[:16]}."
                ),
                "A lane has one message a slot.",
            ]
        case TwoVotes(first=vote, second=other):
            kind = "prevoted" if vote.kind == PREVOTE else "precommitted"
            return [
                (
                    f"Member {vote.member} of the committee of epoch {vote.epoch} {kind} twice in ballot {vote.ballot} of turn "
                    f"{vote.turn}: for {_value(vote)}, and for {_value(other)}."
                ),
                "A member has one vote of a kind in a ballot.",
            ]
        case TwoProposals(first=head, second=later):
            about = head.certificate
            return [
                (
                    f"Member {head.member} of the committee of epoch {about.epoch} made two proposals in ballot {about.ballot} of "
                    f"turn {about.turn}: {head.id.hex()[:16]} and {later.id.hex()[:16]}."
                ),
                "A leader makes one proposal a ballot.",
            ]


def _value(vote: Vote) -> str:
    return "nothing" if vote.value is None else vote.value.hex()[:16]


def _iso(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="seconds")
