"""What the page shows of a wallet, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader, select_autoescape

from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.schema import iso, turn_view
from pocqueue.hosts.pay import hyper
from pocqueue.hosts.records import Gpu
from pocqueue.hosts.store.health import LOAD_STEP_MS

#: Points of a day's load.
_NUM_POINTS: Final = 96
_MAX_NODES: Final = 500
_MAX_JOBS: Final = 25

templates = Environment(
    loader=PackageLoader("pocqueue.hosts.gateway.page"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Load:
    """The load of a GPU in the last day."""

    points: str  #: of a polyline, 96 wide and 20 high
    now: int  #: percent


def rows_of(view: dict[str, Any]) -> dict[str, str]:
    """Write the parts of the page that are live, by the id of their place."""
    return {
        name: templates.get_template(f"_{name}.html").render(view)
        for name in ("nodes", "jobs", "totals")
    }


async def read(hub: Hub, wallet: str, *, is_owner: bool) -> dict[str, Any]:
    """Read what the page shows of a wallet.

    Args:
        is_owner: in a session of that wallet, with self-tests and loads.
    """
    store = hub.store
    nodes = await hub.db(store.nodes.of_wallet, wallet, limit=_MAX_NODES)
    ids = [node.id for node in nodes]
    busy = await hub.db(store.presence.busy, ids)
    earned = await hub.db(store.ledger.earned_by_node, wallet)
    turns, _ = await hub.db(store.jobs.of_wallet, wallet, limit=_MAX_JOBS)
    loads = await hub.db(store.health.loads, ids) if is_owner and ids else {}
    now_ms = store.now_ms()
    shown = []
    for node in nodes:
        test = await hub.db(store.health.self_test, node.id) if is_owner else None
        shown.append(
            {
                "id": node.id,
                "hostname": node.hostname,
                "status": node.status(now_ms, store.offline_ms, busy=node.id in busy),
                "last_heartbeat": iso(node.last_ms),
                "earned": hyper(earned.get(node.id, 0)),
                "gpus": [
                    _gpu(gpu, loads.get((node.id, gpu.uuid), ()), now_ms) for gpu in node.gpus
                ],
                "failed": [] if test is None else [r for r in test.rows if r["state"] == "fail"],
            }
        )
    jobs = [turn_view(turn).model_dump() | {"earned": hyper(turn.attempt.micro)} for turn in turns]
    held = sum(earned.get(node.id, 0) for node in nodes if not node.proven)
    return {
        "nodes": shown,
        "jobs": jobs,
        "online": sum(node["status"] in {"online", "busy"} for node in shown),
        "earned": hyper(sum(earned.values())),
        "held": hyper(held) if held else "",
    }


def _gpu(gpu: Gpu, load: Sequence[tuple[int, float]], now_ms: int) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "vram": "" if gpu.vram_mib is None else f"{gpu.vram_mib / 1024:.0f} GiB",
        "healthy": gpu.healthy,
        "reason": gpu.reason,
        "load": _line(load, now_ms),
    }


def _line(load: Sequence[tuple[int, float]], now_ms: int) -> Load | None:
    """Return a line of a day's quarters, the newest at its right end; None: nothing is known."""
    if not load:
        return None
    points = []
    for from_ms, percent in load:
        x = _NUM_POINTS - 1 - (now_ms - from_ms) // LOAD_STEP_MS
        if x >= 0:
            points.append(f"{x},{19 - 18 * percent / 100:.1f}")
    return Load(" ".join(points), round(load[-1][1]))
