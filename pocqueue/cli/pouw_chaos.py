"""`pocqueue pouw testnet --chaos`: does to the nodes what the plan says, and sees what their network does about it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pocqueue.cli.pouw_client import ask
from pocqueue.cli.pouw_nodes import Node
from pocqueue.pouw.errors import PouwError

if TYPE_CHECKING:
    from pocqueue.pouw.chaos.plan import Act
    from pocqueue.processes.tree import ProcessTree

#: Until what was on its way has come, and a leader that is gone was waited for.
_SETTLE_S = 2.0
_LOOK_S = 0.5
_PATIENCE_S = 3.0
#: The network may take so long to begin; to go on after something; and to catch a cheat, after all else is over.
_BEGIN_S, _GO_ON_S, _CATCH_S = 180.0, 45.0, 60.0
#: For what is on to be undone.
_END_S = 15.0
#: Of the first turns nothing is disturbed.
_FIRST_TURNS = 5


@dataclass
class Deed:
    """An act of the plan, and what came of it."""

    act: Act
    found: str = "not over yet"
    #: The network did as it should; None: it is not over.
    holds: bool | None = None
    #: From its end until all honest nodes had another slot; None: that was not looked at, or did not come.
    goes_on_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        act = self.act
        return {
            "kind": act.kind,
            "nodes": list(act.nodes),
            "cheat": act.cheat or None,
            "text": act.text,
            "found": self.found,
            "holds": self.holds,
            "goes_on_s": self.goes_on_s,
        }


@dataclass(frozen=True)
class Slashed:
    """A stake that evidence took."""

    node: str
    evidence: str
    height: int


@dataclass(eq=False)
class Chaos:
    """Works through a plan in a thread of its own. A context manager: at its end nothing of it is on any more.

    Args:
        seed: of the plan.
        plan: what is to be done.
        nodes: of the network, started with `has_chaos`.
        tree: their processes.
    """

    seed: int
    plan: Sequence[Act]
    nodes: Sequence[Node]
    tree: ProcessTree
    deeds: list[Deed] = field(default_factory=list)
    slashed: list[Slashed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self._accounts: dict[str, str] = {}
        self._read_height = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Begin nothing more, and undo what is on."""
        self._stopped.set()
        self._thread.join(_END_S)

    @property
    def is_over(self) -> bool:
        """Say whether everything was done."""
        return not self._thread.is_alive()

    @property
    def cheaters(self) -> set[str]:
        """Return the names of the nodes that cheat at some time."""
        return {name for act in self.plan if act.kind == "cheat" for name in act.nodes}

    @property
    def is_well(self) -> bool:
        """Say whether the network did what it should about everything that was done and is over."""
        return not self.wronged and all(deed.holds is not False for deed in self.deeds)

    @property
    def is_done(self) -> bool:
        """Say whether everything was done, and seen to its end."""
        is_begun = len(self.deeds) == len(self.plan)
        return is_begun and all(deed.holds is not None for deed in self.deeds)

    @property
    def wronged(self) -> list[Slashed]:
        """Return the stakes of honest nodes that were taken."""
        return [one for one in self.slashed if one.node not in self.cheaters]

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "seed": self.seed,
            "is_well": self.is_well,
            "is_done": self.is_done,
            "planned": len(self.plan),
            "deeds": [deed.to_json() for deed in self.deeds],
            "slashed": [asdict(one) for one in self.slashed],
        }

    def summary(self) -> list[str]:
        """Return what was done and what came of it, a line each."""
        lines = [
            f"{deed.act.text}: {deed.found}{' - NOT AS IT SHOULD BE' if deed.holds is False else ''}"
            for deed in self.deeds
        ]
        lines += [
            f"{one.node} lost its stake by {one.evidence} although it was honest"
            for one in self.wronged
        ]
        if self.is_over and len(self.deeds) < len(self.plan):
            lines.append(f"Not begun, as it ended before: {len(self.plan) - len(self.deeds)} more.")
        return lines

    def _run(self) -> None:
        """Do everything; whatever happens, all nodes run and are honest and in reach at the end."""
        try:
            self._begin()
            for act in self.plan:
                if self._stopped.is_set():
                    return
                deed = Deed(act)
                self.deeds.append(deed)
                if act.kind == "cheat":
                    self._tell(act.nodes, f"cheat/{act.cheat}")
                else:
                    self._disturb(deed)
                self._read_slashes()
            self._catch()
        finally:
            self._undo()

    def _begin(self) -> None:
        """Wait until slots are certified, and every node is known."""
        self._until(lambda: self._turn() >= _FIRST_TURNS, _BEGIN_S)

        def know_all() -> bool:
            for node in self.nodes:
                status = self._ask(node, "status")
                if status is None or (status["staking_ticket"] is None and node.role != "peer"):
                    return False
                self._accounts[node.name] = status["public_key"]
            return True

        self._until(know_all, _BEGIN_S)

    def _disturb(self, deed: Deed) -> None:
        """Do one thing, look whether slots go on or stand still, undo it, and wait until they go on for all."""
        act = deed.act
        inside = [node for node in self._honest if node.name in act.nodes]
        outside = [node for node in self._honest if node.name not in act.nodes]
        still, moving = (outside, []) if act.stops_slots else ([], outside)
        if act.kind == "cut":
            still = [*still, *inside]
        before = self._turn(moving)
        began = time.monotonic()
        undo = self._do(act)
        try:
            self._stopped.wait(min(_SETTLE_S, act.lasts_s))
            settled = self._turn(still)
            self._stopped.wait(max(0.0, act.lasts_s - (time.monotonic() - began)))
            stood, moved = self._turn(still) - settled, self._turn(moving) - before
        finally:
            undo()
        found, is_right = [], stood == 0
        if still:
            found.append("slots stood still" if is_right else f"{stood} slots nevertheless")
        if moving:
            is_right = is_right and moved > 0
            found.insert(0, f"{moved} slots meanwhile")
        over, newest = time.monotonic(), self._turn()
        came = self._until(
            lambda: all(self._turn([one]) > newest for one in self._honest), _GO_ON_S
        )
        if came:
            deed.goes_on_s = time.monotonic() - over
            found.append(f"all go on after {deed.goes_on_s:.1f} s")
        else:
            behind = ", ".join(one.name for one in self._honest if self._turn([one]) <= newest)
            found.append(f"{behind} did not go on within {_GO_ON_S:.0f} s")
        deed.found, deed.holds = ", ".join(found), is_right and came

    def _do(self, act: Act) -> Callable[[], None]:
        """Begin with an act; return what undoes it."""
        if act.kind == "kill":
            # They are started again by themselves.
            self._signal(act.nodes, signal.SIGKILL)
            return lambda: None
        if act.kind == "pause":
            self._signal(act.nodes, signal.SIGSTOP)
            return lambda: self._signal(act.nodes, signal.SIGCONT)
        for node in self.nodes:
            is_inside = node.name in act.nodes
            away = [
                f"account={account}"
                for name, account in self._accounts.items()
                if (name in act.nodes) is not is_inside
            ]
            self._tell([node.name], f"cut?{'&'.join(away)}")
        return lambda: self._tell([node.name for node in self.nodes], "heal")

    def _catch(self) -> None:
        """Wait until every cheat that is on has lost its stake."""

        def is_caught() -> bool:
            self._read_slashes()
            return all(deed.holds for deed in self.deeds if deed.act.kind == "cheat")

        self._until(is_caught, _CATCH_S)
        for deed in self.deeds:
            if deed.act.kind == "cheat" and not deed.holds:
                deed.found, deed.holds = "not caught", False

    def _read_slashes(self) -> None:
        """Look for evidence in the blocks of an honest node that are final."""
        for node in self._honest:
            status = self._ask(node, "status")
            if status is not None:
                break
        else:
            return
        names = {account: name for name, account in self._accounts.items()}
        while self._read_height < status["anchor_height"]:
            block = self._ask(node, f"blocks/{self._read_height + 1}")
            if block is None:
                return
            self._read_height += 1
            for transaction in block["transactions"]:
                if transaction["kind"] != "Evidence":
                    continue
                accused = names.get(transaction["accused"], transaction["accused"])
                self._note_slash(Slashed(accused, transaction["evidence"], self._read_height))

    def _note_slash(self, slashed: Slashed) -> None:
        self.slashed.append(slashed)
        for deed in self.deeds:
            if deed.act.kind == "cheat" and slashed.node in deed.act.nodes and not deed.holds:
                deed.found = f"stake lost at height {slashed.height}, evidence {slashed.evidence}"
                deed.holds = True
                self._tell(deed.act.nodes, "cheat/none")

    def _undo(self) -> None:
        names = [node.name for node in self.nodes]
        self._signal(names, signal.SIGCONT)
        self._tell(names, "heal")
        self._tell(names, "cheat/none")

    @property
    def _honest(self) -> list[Node]:
        """Return who has not cheated so far."""
        lying = {name for deed in self.deeds if deed.act.kind == "cheat" for name in deed.act.nodes}
        return [node for node in self.nodes if node.name not in lying]

    def _signal(self, names: Sequence[str], number: signal.Signals) -> None:
        for name in names:
            self.tree.signal(name, number)

    def _tell(self, names: Sequence[str], what: str) -> None:
        for node in self.nodes:
            if node.name in names:
                with suppress(PouwError):
                    ask(node.http_port, f"chaos/{what}", post=True, timeout_s=_PATIENCE_S)

    def _ask(self, node: Node, path: str) -> Any:
        with suppress(PouwError):
            return ask(node.http_port, path, timeout_s=_PATIENCE_S)
        return None

    def _turn(self, nodes: Sequence[Node] | None = None) -> int:
        """Return the newest turn that one of these nodes knows; -1: none answers."""
        found = [self._ask(node, "status") for node in (self._honest if nodes is None else nodes)]
        return max((int(status["turn"]) for status in found if status is not None), default=-1)

    def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline or self._stopped.is_set():
                return False
            self._stopped.wait(_LOOK_S)
        return True
