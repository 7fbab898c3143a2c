"""A network of node processes that several supervisors have founded together, and what is looked at of all of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pocqueue.node.keys import SigningKey
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis

_NUMBER = re.compile(r"_\d+$")


class Founded(NamedTuple):
    """Its nodes; none is started yet."""

    genesis: str
    supervisors: list[
        NodeProcess
    ]  #: ascending by account, so that a candidate's place is its place here
    accounts: list[str]  #: of these
    others: list[NodeProcess]

    @property
    def nodes(self) -> list[NodeProcess]:
        """Return all of them."""
        return self.supervisors + self.others

    def start(self) -> None:
        """Start all of them."""
        for one in self.nodes:
            one.start()

    def stop(self) -> None:
        """End those that run."""
        for one in reversed(self.nodes):
            one.stop()


def founded(
    folder: Path,
    *others: str,
    num: int = 4,
    changes: Mapping[int | str, str] | None = None,
    can_be_told: bool = True,
    **numbers: object,
) -> Founded:
    """Return a network.

    Args:
        folder: for its files.
        others: names of its nodes beside the supervisors, which do not mine: their roles, numbered or not.
        num: of supervisors.
        changes: what is different in some nodes, by a supervisor's place or another one's name; see `NodeProcess`.
        can_be_told: nodes can be told to fail.
        numbers: of its genesis; see `quick_genesis`.
    """
    keys = sorted((SigningKey.generate() for _ in range(num)), key=lambda key: key.public_hex)
    listed = ", ".join(f'"{key.public_hex}"' for key in keys)
    genesis = quick_genesis(folder, supervisors=f"[{listed}]", **numbers)
    changes = changes or {}
    supervisors: list[NodeProcess] = []
    for place, key in enumerate(keys):
        one = NodeProcess(
            folder / f"supervisor_{place}",
            "supervisor",
            genesis,
            *supervisors,
            options="--no-mine",
            key=key,
            can_be_told=can_be_told,
            change=changes.get(place, ""),
        )
        supervisors.append(one)
    rest = [
        NodeProcess(
            folder / name,
            _NUMBER.sub("", name),
            genesis,
            *supervisors,
            can_be_told=can_be_told,
            change=changes.get(name, ""),
        )
        for name in others
    ]
    return Founded(genesis, supervisors, [key.public_hex for key in keys], rest)


def newest_turn(nodes: Sequence[NodeProcess]) -> int:
    """Return the newest turn that one of these nodes has."""
    return max(one.number("turn") for one in nodes)


def all_go_on(nodes: Sequence[NodeProcess]) -> None:
    """Wait until each of these has slots that nobody had yet."""
    newest = newest_turn(nodes)
    for one in nodes:
        one.until_past("turn", newest)


def transactions(one: NodeProcess, kind: str) -> list[dict[str, Any]]:
    """Return the transactions of a kind in a node's chain, with the height, task and slot of their blocks."""
    found = []
    for short in one.ask("blocks?last=1000"):
        if short["num_transactions"]:
            block = one.ask(f"blocks/{short['height']}")
            place = {name: block[name] for name in ("height", "task", "slot")}
            found += [{**transaction, **place} for transaction in block["transactions"]]
    return [transaction for transaction in found if transaction["kind"] == kind]
