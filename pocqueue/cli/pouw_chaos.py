"""`pocqueue pouw testnet --chaos`: does to the nodes what the plan says, and sees what their network does about it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pocqueue.cli.pouw_client import ask
from pocqueue.cli.pouw_nodes import Node
from pocqueue.pouw.errors import PouwError

if TYPE_CHECKING:
    from pocqueue.pouw.chaos.plan import Act
    from pocqueue.processes.tree import ProcessTree

#: What was on its way has come when nobody had anything new for so long, or after a few times that; then whoever has to
#: stand still is looked at for as long again.
_SETTLE_S, _LONGEST_SETTLE_S = 2.0, 10.0
_LOOK_S = 0.25
_PATIENCE_S, _TELL_S = 3.0, 20.0
#: The network may take so long to begin, to go on after something, and to catch a cheat. Many times what it takes on a
#: machine of its own: how long it was is said, and no reason to fail.
_BEGIN_S, _GO_ON_S, _CATCH_S = 300.0, 90.0, 120.0
#: For what is on to be undone.
_END_S = 30.0
#: Of the first turns nothing is disturbed.
_FIRST_TURNS = 5
#: Slots go on if there are so many: one may have been decided before.
_GOES_ON = 2


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
        self._distrusted: set[str] = set()
        self._supervisors = {node.name for node in self.nodes if node.role == "supervisor"}

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
    def distrusted(self) -> set[str]:
        """Return the names of nodes that are not asked what they know: supervisors as long as they cheat, and miners that
        have cheated, as others ban whoever sends them false blocks.
        """
        return set(self._distrusted)

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
            if not self._begin():
                return
            for act in self.plan:
                if self._supervisors.intersection(act.nodes):
                    # A committee tolerates one at a time.
                    self._catch(self._supervisors)
                if self._stopped.is_set():
                    return
                deed = Deed(act)
                self.deeds.append(deed)
                if act.kind == "cheat":
                    self._distrusted |= {*act.nodes}
                    self._tell(act.nodes, f"cheat/{act.cheat}")
                else:
                    self._disturb(deed)
                self._read_slashes()
            self._catch({node.name for node in self.nodes})
        finally:
            self._undo()

    def _begin(self) -> bool:
        """Wait until slots are certified, and every node is known and takes part."""

        def know_all() -> bool:
            for node in self.nodes:
                status = self._ask(node, "status")
                if status is None or (status["staking_ticket"] is None and node.role != "peer"):
                    return False
                self._accounts[node.name] = status["public_key"]
            return True

        has_begun = self._until(lambda: self._turn() >= _FIRST_TURNS and know_all(), _BEGIN_S)
        return has_begun and not self._all_go_on(_BEGIN_S)

    def _disturb(self, deed: Deed) -> None:
        """Do one thing until it is seen that slots go on or stand still, undo it, and wait until they go on for all."""
        act = deed.act
        inside = [node for node in self._trusted if node.name in act.nodes]
        outside = [node for node in self._trusted if node.name not in act.nodes]
        still, moving = (outside, []) if act.stops_slots else ([], outside)
        if act.kind == "cut":
            still = [*still, *inside]
        began = time.monotonic()
        undo = self._do(act)
        before = self._turn(moving)
        try:
            # Who was killed is not killed for longer.
            settled = self._settled(still, _SETTLE_S if act.kind == "kill" else _LONGEST_SETTLE_S)
            over = max(
                began + act.lasts_s, 0.0 if act.kind == "kill" else time.monotonic() + _SETTLE_S
            )
            self._stopped.wait(max(0.0, over - time.monotonic()))
            stood = self._turn(still) - settled
            if moving:
                self._until(lambda: self._turn(moving) - before >= _GOES_ON, _GO_ON_S)
            moved = self._turn(moving) - before
        finally:
            undo()
        found, is_right = [], stood == 0
        if still:
            found.append("slots stood still" if is_right else f"{stood} slots nevertheless")
        if moving:
            is_right = is_right and moved >= _GOES_ON
            found.insert(0, f"{moved} slots meanwhile")
        over = time.monotonic()
        behind = self._all_go_on(_GO_ON_S)
        if self._stopped.is_set():
            return  # nobody had the time that is due: it is not over
        if behind:
            found.append(f"{', '.join(behind)} did not go on within {_GO_ON_S:.0f} s")
        else:
            deed.goes_on_s = time.monotonic() - over
            found.append(f"all go on after {deed.goes_on_s:.1f} s")
        deed.found, deed.holds = ", ".join(found), is_right and not behind

    def _all_go_on(self, limit_s: float) -> list[str]:
        """Wait until all have slots that nobody had yet, and all blocks that somebody has now: who lacks some of them may not
        vote yet. Return the names of those that were behind when time was up.
        """
        stand = self._stand(self._trusted)
        turn, height = (max(numbers) for numbers in zip((-1, -1), *stand, strict=True))
        behind: list[str] = []

        def go_on() -> bool:
            stand = zip(self._trusted, self._stand(self._trusted), strict=True)
            behind[:] = [node.name for node, at in stand if at[0] <= turn or at[1] < height]
            return not behind

        self._until(go_on, limit_s)
        return behind

    def _do(self, act: Act) -> Callable[[], None]:
        """Begin with an act; return what undoes it."""
        if act.kind == "kill":
            # They are started again by themselves.
            self._signal(act.nodes, signal.SIGKILL)
            return lambda: None
        if act.kind == "pause":
            self._signal(act.nodes, signal.SIGSTOP)
            return lambda: self._signal(act.nodes, signal.SIGCONT)
        sides: tuple[list[tuple[str, str]], ...] = ([], [])
        for name, account in self._accounts.items():
            sides[name in act.nodes].append((name, f"account={account}"))
        with ThreadPoolExecutor(len(sides)) as pool:
            for here, there in (sides, sides[::-1]):
                names, away = [name for name, _ in here], "&".join(account for _, account in there)
                pool.submit(self._tell, names, f"cut?{away}")
        return lambda: self._tell([node.name for node in self.nodes], "heal")

    def _catch(self, names: Collection[str]) -> None:
        """Wait until those of these nodes that cheat have lost their stakes."""
        cheats = [
            deed for deed in self.deeds if deed.act.kind == "cheat" and {*names} & {*deed.act.nodes}
        ]

        def is_caught() -> bool:
            self._read_slashes()
            return all(deed.holds is not None for deed in cheats)

        if self._until(is_caught, _CATCH_S) or self._stopped.is_set():
            return
        for deed in cheats:
            if deed.holds is None:
                deed.found, deed.holds = "not caught", False
                self._tell(deed.act.nodes, "cheat/none")

    def _read_slashes(self) -> None:
        """Look for evidence in the blocks of an honest node that are final."""
        for node in self._trusted:
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
                self._distrusted -= self._supervisors.intersection(deed.act.nodes)

    def _undo(self) -> None:
        names = [node.name for node in self.nodes]
        self._signal(names, signal.SIGCONT)
        self._tell(names, "heal")
        self._tell(names, "cheat/none")

    @property
    def _trusted(self) -> list[Node]:
        return [node for node in self.nodes if node.name not in self._distrusted]

    def _signal(self, names: Sequence[str], number: signal.Signals) -> None:
        for name in names:
            self.tree.signal(name, number)

    def _tell(self, names: Sequence[str], what: str) -> None:
        """Tell nodes something, all at the same time."""

        def tell(node: Node) -> None:
            with suppress(PouwError):
                ask(node.http_port, f"chaos/{what}", post=True, timeout_s=_TELL_S)

        told = [node for node in self.nodes if node.name in names]
        with ThreadPoolExecutor(max(len(told), 1)) as pool:
            list(pool.map(tell, told))

    def _ask(self, node: Node, path: str) -> Any:
        with suppress(PouwError):
            return ask(node.http_port, path, timeout_s=_PATIENCE_S)
        return None

    def _turn(self, nodes: Sequence[Node] | None = None) -> int:
        """Return the newest turn that one of these nodes knows; -1: none answers."""
        stand = self._stand(self._trusted if nodes is None else nodes)
        return max((turn for turn, _ in stand), default=-1)

    def _stand(self, nodes: Sequence[Node]) -> list[tuple[int, int]]:
        """Return the newest turn and the height of each of these nodes; -1 and -1: it does not answer."""
        with ThreadPoolExecutor(max(len(nodes), 1)) as pool:
            found = list(pool.map(lambda node: self._ask(node, "status"), nodes))
        return [
            (-1, -1) if status is None else (int(status["turn"]), int(status["blockchain_height"]))
            for status in found
        ]

    def _settled(self, nodes: Sequence[Node], longest_s: float) -> int:
        """Return the newest turn of these nodes, once it has been the same for a while."""
        came_s, newest = time.monotonic(), self._turn(nodes)

        def is_settled() -> bool:
            nonlocal came_s, newest
            if (turn := self._turn(nodes)) > newest:
                came_s, newest = time.monotonic(), turn
            return time.monotonic() - came_s >= _SETTLE_S

        if nodes:
            self._until(is_settled, longest_s)
        return newest

    def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline or self._stopped.is_set():
                return False
            self._stopped.wait(_LOOK_S)
        return True
