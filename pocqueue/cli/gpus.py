"""`pocqueue gpus`: the pool."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pocqueue.cli.options import Json
from pocqueue.cli.output import columns, console, print_json, seconds

if TYPE_CHECKING:
    from pocqueue.rounds.pool import Gpu


def gpus(as_json: Json = False) -> None:
    """List the pool: each GPU queue and the worker behind it."""
    from rich.markup import escape

    from pocqueue.rounds.backend import Backend
    from pocqueue.settings import Settings

    with Backend.open(Settings.load()) as backend:
        pool = backend.pool.all()
        backend.pool.forget_dead(pool)
    if as_json:
        print_json(
            [
                asdict(gpu) | {"is_live": gpu.is_live, "silent_s": round(gpu.silent_s, 3)}
                for gpu in pool
            ]
        )
        return
    if not pool:
        console().print(
            "No GPUs. `celery -A pocqueue worker -Q gpu0` starts a worker on the first one."
        )
        return
    table = columns(
        *("queue", "host", "device", "model", "engine"),
        right=("nonces/s (shape)", "load", "checked", "last seen"),
        words=("host", "device", "model"),
    )
    table.add_column("state")
    for gpu in pool:
        info = gpu.info
        rates = ", ".join(f"{rate:,.0f} ({shape})" for shape, rate in gpu.rates.items())
        table.add_row(
            escape(gpu.queue),
            escape(gpu.host),
            escape(f"{info.device} {info.device_name}"),
            escape(f"{info.model} ({info.fingerprint[:12]})"),
            f"{info.engine} {info.dtype}",
            rates,
            f"{100 * gpu.load:.0f} %",
            f"{gpu.checked:,}",
            f"{seconds(gpu.silent_s)} ago",
            _state(gpu),
        )
    console().print(table)


def _state(gpu: Gpu) -> str:
    from rich.markup import escape

    if not gpu.is_live:
        return "[red]dead[/red]"
    if gpu.hangs:
        return f"[red]hangs in a pass of {seconds(gpu.pass_s)}[/red]"
    if gpu.draining:
        return "[yellow]draining[/yellow]"
    if gpu.last_error:
        return f"[yellow]live; last error: {escape(gpu.last_error)}[/yellow]"
    return "[green]live[/green]"
