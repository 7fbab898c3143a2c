"""A committee of one and two miners over a network that reorders, loses and repeats, with nodes that die at any point.

There are never two certificates of a slot, nor two messages of a lane, and whoever has the records has the same
weights. When the network is well again they all go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hypothesis import HealthCheck, given, settings, strategies as st

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.slots.history import Advance
from pocqueue.pouw.slots.messages import check
from pocqueue.pouw.slots.miner import LaneMiner
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import SlotRecord
from tests.pouw.slots.support import (
    ANCHOR,
    COMMITTEE,
    KEYS,
    LANES,
    NETWORK,
    TASK,
    collector,
    made_up,
)

_Push = IterationWithMap | SlotRecord


class _Node:
    """What the loop of a node does with slots. One without a key is the committee."""

    def __init__(self, store: SlotStore, key: SigningKey | None, world: _World) -> None:
        self.store, self.key, self.world = store, key, world
        self.restart()

    def restart(self) -> None:
        """Forget all but what is on disk."""
        self.history = self.store.history(TASK)
        self.committee = collector(self.history) if self.key is None else None
        self.miner = None
        if self.key is not None:
            lane = (LANES[KEYS.index(self.key)][0], 0)
            self.miner = LaneMiner(self.history, self.key, sent=self.store.own.sent(TASK.id, lane))

    def receive(self, pushed: _Push) -> None:
        """Take in what another node pushed."""
        if isinstance(pushed, SlotRecord):
            return self.follow(pushed)
        try:
            check(pushed, TASK, NETWORK, self.history.next_slot, 1)
        except SlotError as exc:
            if exc.rule != "slot":  # old news
                raise
            return None
        if self.committee is None:
            self.history.keep(pushed)
        else:
            self.committee.add(pushed, self.world.now_ms)
        return None

    def follow(self, record: SlotRecord) -> None:
        """Go on with a record; ask the committee for what is not here."""
        verify_signed(record.signed, COMMITTEE)
        newest, history = record.signed.certificate.slot, self.history
        if newest == history.next_slot:
            try:
                return self.go_on(history.check(record))
            except SlotError as exc:
                if exc.rule != "missing":
                    raise
        if newest >= history.next_slot:
            for slot in self.world.nodes[0].store.slots(TASK.id, history.next_slot, 64):
                verify_signed(slot.record.signed, COMMITTEE)
                self.go_on(history.check(slot.record, slot.messages))
        return None

    def go_on(self, advance: Advance) -> None:
        """Write a slot, then have it."""
        self.store.write(advance)
        self.history.add(advance)
        if self.miner is not None:
            self.miner.certified(advance.slot.record, lambda parts, entries: 1)

    def work(self, *, dies: bool = False) -> None:
        """Close the slot, or compute the iteration that is due, and push it; or what is pushed already, again."""
        if self.committee is not None:
            advance = self.committee.tick(self.world.now_ms, LANES[:2], ANCHOR)
            if advance is None:
                for slot in self.store.slots(TASK.id, self.history.next_slot - 1, 1):
                    self.world.push(self, slot.record)
                return
            self.store.write(advance)
            if dies:
                return self.restart()
            self.history.add(advance)
            return self.world.push(self, advance.slot.record)
        assert self.miner is not None
        if work := self.miner.work():
            # Each time with another result: a restarted lane must not send a second one.
            self.world.seed += 1
            done = made_up(work.theta, b"%d" % self.world.seed)
            self.miner.message(work, done, 1, None, self.store.own.write_sent)
            if dies:
                return self.restart()
        if self.miner.current is not None:
            self.world.push(self, self.miner.current)


class _World:
    """The network between them, and what was ever said on it."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.under_way: list[tuple[_Node, _Push]] = []
        self.certificates: dict[int, bytes] = {}
        self.messages: dict[tuple[int, bytes], bytes] = {}
        self.now_ms = 0
        self.seed = 0

    def push(self, sender: _Node, pushed: _Push) -> None:
        """Send to all others; nobody says two things."""
        if isinstance(pushed, SlotRecord):
            certificate = pushed.signed.certificate
            said = self.certificates.setdefault(certificate.slot, certificate.id)
            assert said == certificate.id
        else:
            it = pushed.iteration
            assert self.messages.setdefault((it.slot, it.miner), it.id) == it.id
        self.under_way += [(node, pushed) for node in self.nodes if node is not sender]

    def deliver(self, at: int, *, is_kept: bool = False) -> None:
        """Deliver something that is under way; it may come again."""
        if self.under_way:
            at %= len(self.under_way)
            node, pushed = self.under_way[at] if is_kept else self.under_way.pop(at)
            node.receive(pushed)

    def lose(self, at: int) -> None:
        """Lose something that is under way."""
        if self.under_way:
            self.under_way.pop(at % len(self.under_way))

    def check(self) -> None:
        """Whoever stands at the same slot has the same weights there."""
        thetas = {(node.history.next_slot, node.history.theta) for node in self.nodes}
        assert len(thetas) == len({slot for slot, _ in thetas})


@contextmanager
def _world() -> Iterator[_World]:
    with ExitStack() as stack:
        world = _World()
        for key in (None, *KEYS[:2]):
            store = stack.enter_context(SlotStore(None, NETWORK))
            world.nodes.append(_Node(store, key, world))
        yield world


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["work"] * 8 + ["deliver"] * 8 + ["repeat", "lose", "restart", "restart", "die", "wait"]
        ),
        st.integers(0, 200),
    ),
    min_size=50,
    max_size=100,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS)
def test_nobody_contradicts_himself(steps: list[tuple[str, int]]) -> None:
    """Whatever the network does and whoever dies; afterwards all go on, with both miners in the next lap."""
    with _world() as world:
        for action, number in steps:
            node = world.nodes[number % 3]
            world.now_ms += 100
            if action == "work":
                node.work()
            elif action == "die":
                node.work(dies=True)
            elif action == "restart":
                node.restart()
            elif action == "wait":
                world.now_ms += 40 * number
            elif action == "lose":
                world.lose(number)
            elif action == "repeat":
                world.deliver(number, is_kept=True)
            else:
                for at in range(1 + number % 3):
                    world.deliver(number + at)
            world.check()
        history = world.nodes[0].history
        begin = history.next_slot + LAP - history.next_slot % LAP
        for _ in range(3 * LAP):
            for node in (*world.nodes[1:], world.nodes[0]):
                node.work()
                while world.under_way:
                    world.deliver(0)
            world.now_ms += 300_000
            if world.nodes[0].history.next_slot > begin + 2:
                break
        world.check()
        last = world.nodes[0].history.signed
        assert last is not None
        assert last.certificate.slot >= begin + 2
        assert last.certificate.count == 2
        assert {node.history.next_slot for node in world.nodes} == {last.certificate.slot + 1}
        assert {node.store.history(TASK).theta for node in world.nodes} == {
            world.nodes[0].history.theta
        }
