"""What `pocqueue pouw testnet` shows of its nodes: a table, a line, and whether they agree at the end."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from pocqueue.cli.output import columns, percent, seconds

#: Newest blocks that are shown, and those that are compared at the end.
SHOWN_BLOCKS, COMPARED_BLOCKS = 5, 50
#: Final blocks of others that a node may lack at the end: one or two are always on their way.
_MAX_BEHIND = 3
#: Columns of a terminal from which on there is room for what the nodes' names say already.
_WIDE = 100


def table(found: list[dict[str, Any]], *, width: int, up_s: float) -> Any:
    """Return what to show of a network's nodes.

    Args:
        found: of each node its status with its newest ``blocks``; of one that does not answer ``is_running`` False.
        width: columns of the terminal.
        up_s: how long the network runs.
    """
    from rich.console import Group
    from rich.text import Text

    up = [one for one in found if one["is_running"]]
    parts: list[Any] = [Text(_head(up, up_s), "bold"), "", _nodes(found, is_wide=width >= _WIDE)]
    if any(one["blocks"] for one in up):
        parts += ["", _blocks(up, is_wide=width >= _WIDE)]
    return Group(*parts, "", Text("Coins of dev are worth nothing. Ctrl-C ends it.", "dim"))


def line(found: list[dict[str, Any]]) -> str:
    """Return the same in a line, for what is no terminal."""
    up = [one for one in found if one["is_running"]]
    if not up:
        return "no node answers yet"
    heights = "/".join(map(str, sorted({one["blockchain_height"] for one in up})))
    slot = max(one["slot"] for one in up)
    return f"{len(up)} nodes, height {heights}, slot {slot:,}{_accuracy(up)}"


def verdict(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Say whether the nodes have one history and all of it: ``agree``, ``height`` and a ``sentence``."""
    up = [one for one in found if one["is_running"]]
    silent = [one["node_id"] for one in found if not one["is_running"]]
    height = max((one["blockchain_height"] for one in up), default=0)
    final = max((one["anchor_height"] for one in up), default=0)
    behind = [one["node_id"] for one in up if one["blockchain_height"] < final - _MAX_BEHIND]
    ids: dict[int, set[str]] = {}
    for one in up:
        for block in one["blocks"]:
            if block["height"] <= one["anchor_height"]:
                ids.setdefault(block["height"], set()).add(block["id"])
    differ = [number for number in sorted(ids) if len(ids[number]) > 1]
    agree = bool(up) and not silent and not behind and not differ
    if silent:
        sentence = f"{', '.join(silent)} did not answer at the end."
    elif differ:
        sentence = f"Nodes have different final blocks at height {differ[0]}."
    elif behind:
        sentence = f"{', '.join(behind)} did not follow: others have final blocks up to {final}."
    else:
        sentence = f"{len(up)} nodes agree on one chain of {height} blocks."
    return {"agree": agree, "height": height, "sentence": sentence}


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
    left = ("node", "role", "listens on") if is_wide else ("node",)
    shown = columns(*left, right=("height", "final", "slot", "peers", "mined", "earned, PAI"))
    for one in found:
        names = (
            [one["node_id"], one["role"], f"127.0.0.1:{one['port']}"]
            if is_wide
            else [one["node_id"]]
        )
        if not one["is_running"]:
            shown.add_row(*names, *("-",) * 6, style="dim")
            continue
        shown.add_row(
            *names,
            *(
                f"{one[key]:,}"
                for key in ("blockchain_height", "anchor_height", "slot", "peer_count")
            ),
            *(f"{one['stats']['blocks_mined']}", f"{one['economics']['rewards_earned']:,.2f}"),
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
