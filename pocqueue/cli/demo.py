"""`pocqueue demo`: everything this machine needs for one short round, and the round."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from pocqueue.cli.options import (
    Model,
    Output,
    ValidRate,
    Window,
    default_output,
    option_names,
)
from pocqueue.cli.output import console, note_unlike
from pocqueue.cli.watch import Interrupts

if TYPE_CHECKING:
    from pocqueue.rounds.backend import Backend
    from pocqueue.settings import Settings

#: The first start compiles nothing but reads a lot; a slow disk may need this long.
START_TIMEOUT_S = 300.0


def demo(
    window: Window = 20.0,
    valid_rate: ValidRate = 0.1,
    model: Model = None,
    output: Output = None,
) -> None:
    """Run one short round on this machine, from nothing: starts what it needs and ends it again.

    Uses the pool if GPUs are live already.
    """
    from pocqueue.cli.round import CALIBRATION_SAMPLES, calibrated, finish
    from pocqueue.errors import StoreUnavailable
    from pocqueue.measure.valid_rate import check_valid_rate
    from pocqueue.processes.tree import stop_signals
    from pocqueue.rounds.backend import Backend
    from pocqueue.rounds.start import decided, deployed_model, draft_spec
    from pocqueue.settings import Settings

    # The demonstration's own block: another one each time, as on a chain.
    block_hash = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()
    with option_names():
        check_valid_rate(valid_rate, CALIBRATION_SAMPLES)
        draft = draft_spec(block_hash=block_hash, public_key="demo", window_s=window)
    settings = Settings.override(model=model)
    output = output or default_output(settings.state_dir)
    with ExitStack() as stack:
        # SIGTERM ends what was started, as Ctrl-C does.
        stack.enter_context(stop_signals())
        backend = None
        try:
            backend = stack.enter_context(Backend.open(settings))
        except StoreUnavailable:
            if settings.redis_url is not None:
                raise
        if backend is None or not backend.pool.live():
            backend = _started(stack, settings)
        info = deployed_model(backend, draft, model)
        note_unlike(settings, info)
        console(stderr=True).print(
            f"Model {info.model} ({info.fingerprint[:12]}) on {info.device}, {info.device_name}."
        )
        changes = calibrated(backend, draft, info, valid_rate, quiet=False)
        with Interrupts() as interrupts:
            round_id = backend.store.create(decided(draft, info, **changes))
            code = finish(backend, round_id, output, interrupts, as_json=False)
    raise typer.Exit(code)


def _started(stack: ExitStack, settings: Settings) -> Backend:
    """Start everything, quietly, and return a connection once a GPU is in the pool."""
    from pocqueue.local_stack import local_stack
    from pocqueue.rounds.backend import Backend

    view = console(stderr=True)
    with view.status("Starting Redis, a scheduler and a worker; loading the model …"):
        log_dir = settings.state_dir / "logs"
        started = stack.enter_context(local_stack(settings, flower=False, log_dir=log_dir))
        backend = stack.enter_context(Backend.open(settings))
        started.wait_live(backend.pool, START_TIMEOUT_S)
    return backend
