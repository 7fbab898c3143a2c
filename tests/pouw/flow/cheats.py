"""Ways in which a miner's training may not be what it says, for the trainer of a node that runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.maps import SignMap, decode_map, encode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import weights_bytes, weights_end, weights_from
from pocqueue.pouw.training.messages import IterationResult
from pocqueue.pouw.training.trainer import Trainer
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import IterationWithMap

#: Changes what came of an iteration of a task at these weights.
Change = Callable[[TaskSpec, bytes, IterationResult], IterationResult]


def with_map(
    task: TaskSpec, theta: bytes, done: IterationResult, signs: SignMap
) -> IterationResult:
    """Return a result with another map, and the weights that follow from that."""
    return msgspec.structs.replace(
        done,
        map=encode_map(signs.indices, signs.signs),
        weights_end=weights_end(task, weights_from(theta), signs),
    )


def random_map(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    """Move 200 weights at random."""
    rng = np.random.default_rng(random.randrange(2**32))  # noqa: S311 - no secret
    indices = np.sort(rng.choice(task.num_weights, 200, replace=False)).astype(np.int64)
    signs = rng.choice(np.array([-1, 1], np.int8), 200)
    return with_map(task, theta, done, SignMap(indices, signs))


def flipped(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    """Move each weight the other way."""
    signs = decode_map(done.map, task.num_weights, task.cap)
    return with_map(task, theta, done, SignMap(signs.indices, -signs.signs))


def other_weights_end(task: TaskSpec, theta: bytes, done: IterationResult) -> IterationResult:
    """Say any hash: whoever may choose it, chooses its nonces."""
    return msgspec.structs.replace(done, weights_end=random.randbytes(32))  # noqa: S311


class Cheater:
    """A trainer that changes what is asked for, or what comes of it.

    Args:
        trainer: the real one.
        change: of each result.
        batch_share: only one of so many samples is looked at.
        is_rounded: the gradient is that of weights with the precision of bfloat16.
        keeps_residual: a lap does not begin at zero.
        copies: the map of the result is that of another account, whichever was trained before.
    """

    def __init__(
        self,
        trainer: Trainer,
        change: Change | None = None,
        *,
        batch_share: int = 1,
        is_rounded: bool = False,
        keeps_residual: bool = False,
        copies: bool = False,
    ) -> None:
        self._trainer, self._change, self._batch_share = trainer, change, batch_share
        self._is_rounded, self._keeps_residual, self._copies = is_rounded, keeps_residual, copies
        self._residual: bytes | None = None

    async def iterate(
        self,
        task: TaskSpec,
        theta: bytes,
        residual: bytes | None,
        slot: int,
        miner: bytes,
        *rest: Any,
    ) -> IterationResult:
        """Do something else than what is due."""
        trained = msgspec.structs.replace(task, batch_size=task.batch_size // self._batch_share)
        begun = _rounded(theta) if self._is_rounded else theta
        if self._keeps_residual and residual is None:
            residual = self._residual
        if self._copies:
            # As another miner with the same gradient would have it: of other samples than this one's.
            miner = bytes(33)
        done = await self._trainer.iterate(trained, begun, residual, slot, miner, *rest)
        self._residual = done.residual
        done = with_map(task, theta, done, decode_map(done.map, task.num_weights, task.cap))
        return done if self._change is None else self._change(task, theta, done)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def cheat(node: PoUWNode, change: Change | None = None, **how: Any) -> None:
    """Have a node that runs cheat from now on; see `Cheater`."""
    core = node._life._core  # type: ignore[union-attr]
    core.trainer = Cheater(core.trainer, change, **how)


def say_twice(node: PoUWNode) -> None:
    """Have a node that runs sign a second message for each slot, and send it behind the first."""
    core = node._life._core  # type: ignore[union-attr]
    push = core.network.push

    def push_two(kind: Kind, body: bytes) -> int:
        told = push(kind, body)
        if kind is Kind.ITERATION:
            message = decode(body, IterationWithMap)
            other = msgspec.structs.replace(message.iteration, loss=message.iteration.loss + 1)
            signed = msgspec.structs.replace(other, signature=sign(core.key, other.id))
            told = push(kind, encode(IterationWithMap(signed, message.map)))
        return told

    core.network.push = push_two  # type: ignore[method-assign]


def _rounded(theta: bytes) -> bytes:
    """Return weights of which each has the upper 16 bits only."""
    bits = np.frombuffer(theta, "<u4") & np.uint32(0xFFFF0000)
    return weights_bytes(bits.astype("<u4").view("<f4"))
