"""What a node does that cheats. Each cheat sits at a seam of an honest node: its trainer, or what it pushes to others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from msgspec.structs import replace

from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.maps import SignMap, encode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import weights_end, weights_from
from pocqueue.pouw.training.messages import IterationResult
from pocqueue.pouw.training.trainer import Trainer
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.votes import Proposal, Vote

_ENTRIES = 100

#: Makes a node honest again.
Undo = Callable[[], None]


def false_maps(core: Core) -> Undo:
    """Send maps that nobody has trained: weights and signs by chance."""
    honest = core.trainer
    core.trainer = cast("Trainer", _FalseMaps(honest))

    def undo() -> None:
        core.trainer = honest

    return undo


def two_messages(core: Core) -> Undo:
    """Sign two messages of each slot, and send both to everybody."""

    def second(body: bytes) -> bytes:
        message = decode(body, IterationWithMap)
        other = replace(message.iteration, loss=message.iteration.loss + 1)
        other = replace(other, signature=sign(core.key, other.id))
        return encode(replace(message, iteration=other))

    return _push_both(core, Kind.ITERATION, second)


def two_votes(core: Core) -> Undo:
    """Vote for something and for nothing in each ballot."""

    def second(body: bytes) -> bytes | None:
        vote = decode(body, Vote)
        if vote.value is None:
            return None
        other = replace(vote, value=None, share=None)
        return encode(replace(other, signature=sign(core.key, other.id)))

    return _push_both(core, Kind.VOTE, second)


def two_values(core: Core) -> Undo:
    """As the leader of a ballot propose one value to half of the peers, and another one to the others."""
    network, honest = core.network, core.network.push

    def push(kind: Kind, body: bytes) -> int:
        if kind is not Kind.PROPOSAL:
            return honest(kind, body)
        proposal = decode(body, Proposal)
        head = proposal.head
        certificate = replace(head.certificate, time_ms=head.certificate.time_ms + 1)
        head = replace(head, certificate=certificate)
        head = replace(head, signature=sign(core.key, head.id))
        other = encode(replace(proposal, head=head))
        # Members first: of those some have the one and some the other. What none of them hears has no effect.
        committee = core.chain.tip.state.committee_in_office
        members = committee.members if committee is not None else ()
        links = sorted(
            network._roster.links.items(), key=lambda item: (item[0] not in members, item[0])
        )
        for place, (_, link) in enumerate(links):
            link.send(kind, other if place % 2 else body)
        return len(links)

    vars(network)["push"] = push
    return lambda: vars(network).__delitem__("push")


#: By name, those of a miner and those of a supervisor.
MINER_CHEATS: dict[str, Callable[[Core], Undo]] = {
    "false-maps": false_maps,
    "two-messages": two_messages,
}
SUPERVISOR_CHEATS: dict[str, Callable[[Core], Undo]] = {
    "two-values": two_values,
    "two-votes": two_votes,
}
CHEATS = MINER_CHEATS | SUPERVISOR_CHEATS


def _push_both(core: Core, kind: Kind, second: Callable[[bytes], bytes | None]) -> Undo:
    network, honest = core.network, core.network.push

    def push(pushed: Kind, body: bytes) -> int:
        number = honest(pushed, body)
        if pushed is kind and (other := second(body)) is not None:
            honest(kind, other)
        return number

    vars(network)["push"] = push
    return lambda: vars(network).__delitem__("push")


class _FalseMaps:
    """A trainer that trains nothing; all else it does as it should."""

    def __init__(self, honest: Trainer) -> None:
        self._honest = honest

    async def iterate(
        self, task: TaskSpec, theta: bytes, residual: bytes | None, *rest: Any
    ) -> IterationResult:
        """Return a map by chance, with the weights that follow from it."""
        done = await self._honest.iterate(task, theta, residual, *rest)
        rng = np.random.default_rng()
        size = min(_ENTRIES, task.cap)
        indices = np.sort(rng.choice(task.num_weights, size, replace=False)).astype(np.int64)
        signs = SignMap(indices, rng.choice(np.array([-1, 1], np.int8), size))
        return replace(
            done,
            map=encode_map(signs.indices, signs.signs),
            weights_end=weights_end(task, weights_from(theta), signs),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)
