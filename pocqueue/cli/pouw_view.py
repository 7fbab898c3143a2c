"""What `pocqueue pouw testnet` shows of its nodes: a table, a line, and whether they agree at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from pocqueue.cli.output import columns, percent, seconds

#: Newest blocks that are shown, and blocks and slots that are compared at the end.
SHOWN_BLOCKS, COMPARED_BLOCKS, COMPARED_SLOTS = 5, 50, 200
#: Of what happens on purpose.
_SHOWN_DEEDS = 8
#: Final blocks of others that a node may lack at the end: one or two are always on their way.
_MAX_BEHIND = 3
#: Columns of a terminal from which on there is room for what the nodes' names say already.
_WIDE = 110


def table(
    found: list[dict[str, Any]], happened: Sequence[str] = (), *, width: int, up_s: float
) -> Any:
    """Return what to show of a network's nodes.

    Args:
        found: of each node its status with its newest ``blocks``; of one that does not answer ``is_running`` False.
        happened: what was done to them on purpose, oldest first; the newest are shown.
        width: columns of the terminal.
        up_s: how long the network runs.
    """
    from rich.console import Group
    from rich.text import Text

    up = [one for one in found if one["is_running"]]
    parts: list[Any] = [Text(_head(up, up_s), "bold"), "", _nodes(found, is_wide=width >= _WIDE)]
    if any(one["blocks"] for one in up):
        parts += ["", _blocks(up, is_wide=width >= _WIDE)]
    if happened:
        parts += ["", *(Text(text) for text in happened[-_SHOWN_DEEDS:])]
    return Group(*parts, "", Text("Coins of dev are worth nothing. Ctrl-C ends it.", "dim"))


def line(found: list[dict[str, Any]]) -> str:
    """Return the same in a line, for what is no terminal."""
    up = [one for one in found if one["is_running"]]
    if not up:
        return "no node answers yet"
    heights = "/".join(map(str, sorted({one["blockchain_height"] for one in up})))
    slot = max(one["slot"] for one in up)
    return f"{len(up)} nodes, height {heights}, slot {slot:,}{_accuracy(up)}"


def verdict(found: list[dict[str, Any]], distrusted: Collection[str] = ()) -> dict[str, Any]:
    """Say whether the honest nodes have one history and all of it.

    Args:
        found: of each node its status, with its newest ``blocks`` and ``slots``.
        distrusted: names of nodes that are not asked.

    Returns:
        ``agree``, a ``sentence``, and what they agree on: ``height`` of the longest chain; ``anchor_height`` and ids of
        the newest block that is final for all, ``anchor``, and of the balances after it, ``state``; the newest ``turn``
        that all have, and the ``theta`` of its certificate. What they have not in common is None.
    """
    asked = [one for one in found if one["node_id"] not in distrusted]
    up = [one for one in asked if one["is_running"]]
    silent = [one["node_id"] for one in asked if not one["is_running"]]
    height = max((one["blockchain_height"] for one in up), default=0)
    final = max((one["anchor_height"] for one in up), default=0)
    blocks = _by_number(up, "blocks", "height", lambda node, it: it["height"] <= node["anchor_height"])  # fmt: skip
    slots = _by_number(up, "slots", "turn", lambda _node, _it: True)
    block, block_differs = _common(blocks, len(up), lambda it: (it["id"], it["state"]))
    slot, slot_differs = _common(slots, len(up), lambda it: (it["certificate"], it["theta"]))
    newest = None if slot else max(slots, default=None)
    behind = [one["node_id"] for one in up if _is_behind(one, final, newest)]
    agree = bool(up) and not (silent or behind or block_differs or slot_differs)
    if silent:
        sentence = f"{', '.join(silent)} did not answer at the end."
    elif block_differs:
        sentence = f"Nodes have different final blocks at height {block_differs[0]}."
    elif slot_differs:
        sentence = f"Nodes have different slots of turn {slot_differs[0]}."
    elif behind:
        sentence = f"{', '.join(behind)} did not follow: others have final blocks up to {final}."
    else:
        weights = f", on the weights after turn {slot['turn']}" if slot else ""
        balances = f" and on all balances at height {block['height']}" if block and slot else ""
        sentence = f"{len(up)} nodes agree on one chain of {height} blocks{weights}{balances}."
    return {
        "agree": agree,
        "sentence": sentence,
        "height": height,
        "anchor_height": block.get("height"),
        "anchor": block.get("id"),
        "state": block.get("state"),
        "turn": slot.get("turn"),
        "theta": slot.get("theta"),
    }


def _is_behind(one: dict[str, Any], final: int, newest: int | None) -> bool:
    """Say whether a node lacks final blocks; or, where nodes have no slot in common, the slots before the newest turn."""
    if one["blockchain_height"] < final - _MAX_BEHIND:
        return True
    turns = [slot["turn"] for slot in one["slots"]]
    return newest is not None and max(turns, default=-COMPARED_SLOTS) < newest - COMPARED_SLOTS // 2


def _by_number(
    up: list[dict[str, Any]],
    what: str,
    number: str,
    counts: Callable[[dict[str, Any], dict[str, Any]], bool],
) -> dict[int, list[dict[str, Any]]]:
    """Return blocks or slots by height or turn, one for each node that has it."""
    found: dict[int, list[dict[str, Any]]] = {}
    for one in up:
        for it in one[what]:
            if counts(one, it):
                found.setdefault(it[number], []).append(it)
    return found


def _common(
    found: dict[int, list[dict[str, Any]]],
    num_nodes: int,
    value: Callable[[dict[str, Any]], object],
) -> tuple[dict[str, Any], list[int]]:
    """Return the newest one that all nodes have, empty if there is none, and the numbers of those that differ."""
    differ = [number for number, its in sorted(found.items()) if len({*map(value, its)}) > 1]
    shared = [number for number, its in found.items() if len(its) == num_nodes]
    return (found[max(shared)][0] if shared else {}), differ


def _head(up: list[dict[str, Any]], up_s: float) -> str:
    if not up:
        return f"Nodes start, up {seconds(up_s)}"
    height = max(one["blockchain_height"] for one in up)
    slot = max(one["slot"] for one in up)
    said = f"height {height}, slot {slot:,}{_accuracy(up)}, up {seconds(up_s)}"
    return f"{said[0].upper()}{said[1:]}"


def _accuracy(up: list[dict[str, Any]]) -> str:
    """Return the common model's accuracy as the supervisor measured it last."""
    seen = [one["accuracy"] for one in up if one["accuracy"] is not None]
    return f", accuracy {percent(max(seen))}" if seen else ""


def _nodes(found: list[dict[str, Any]], *, is_wide: bool) -> Any:
    """Return a row a node. A role is in its name, so is not told twice where there is little room."""
    left = ("node", "role") if is_wide else ("node",)
    more = ("turn", "right") if is_wide else ()
    shown = columns(
        *left, right=("height", "final", "slot", *more, "epoch", "peers", "stake", "PAI")
    )
    for one in found:
        names = [one["node_id"], one["role"]] if is_wide else [one["node_id"]]
        if not one["is_running"]:
            shown.add_row(*names, *("-",) * (7 + len(more)), style="dim")
            continue
        right = "" if one["accuracy"] is None else percent(one["accuracy"])
        turn = (f"{one['turn']:,}", right) if is_wide else ()
        coins = one["economics"]
        shown.add_row(
            *names,
            *(f"{one[key]:,}" for key in ("blockchain_height", "anchor_height", "slot")),
            *turn,
            "" if one["epoch"] is None else f"{one['epoch']}",
            *(f"{one['peer_count']}", f"{coins['stake_amount']:,.0f}", f"{coins['balance']:,.2f}"),
        )
    return shown


def _blocks(up: list[dict[str, Any]], *, is_wide: bool) -> Any:
    """Return the newest blocks of the node that has most of them."""
    names = {one["public_key"]: one["node_id"] for one in up}
    best = max(up, key=lambda one: int(one["blockchain_height"]))
    shown = columns(
        "newest blocks", "mined by", "won in", *(["id"] if is_wide else []), right=("age",)
    )
    now_s = time.time()
    for block in best["blocks"][:SHOWN_BLOCKS]:
        age_s = max(0.0, now_s - datetime.fromisoformat(block["time"]).timestamp())
        final = " final" if block["is_final"] else ""
        shown.add_row(
            f"{block['height']}{final}",
            names.get(block["miner"], block["miner"][:12]),
            "founding" if block["proof"].startswith("founding") else f"slot {block['slot']:,}",
            *([block["id"][:24]] if is_wide else []),
            seconds(age_s),
        )
    return shown
