"""A real GPU worker and a simulated one of the same speed, side by side, as Redis sees them.

    python -m benchmarks.fleet.honesty

Both serve one queue of a Redis of their own with a real scheduler, idle first, then with one round. Prints
what each makes Redis do in a second. The real one is `celery -A pocqueue worker -Q gpu0` on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks.fleet.__main__ import scheduler_process, started
from benchmarks.fleet.runner import SHAPE
from benchmarks.services import wait_until
from pocqueue.local_stack import environment
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.start import decided, deployed_model, draft_spec
from pocqueue.settings import Settings

SECONDS = 15.0
#: A calibrated model's share of valid nonces is about a tenth at this target.
R_TARGET = 1.37
IGNORED = {"info", "config|resetstat", "config", "client", "script", "ping", "auth", "select"}

Figures = dict[str, float]
Start = Callable[[Settings, RedisServer, Path], contextlib.AbstractContextManager[object]]


def main() -> None:
    """Measure both, print the table."""
    # Ended from outside (a time limit, say), take Redis and scheduler along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    real, batch_s = measure(_real_worker)

    def simulated(
        settings: Settings, server: RedisServer, folder: Path
    ) -> contextlib.AbstractContextManager[object]:
        argv = ["-m", "benchmarks.fleet.process", "--socket", str(server.socket_path)]
        argv += ["--gpus", "1", "--fastest", str(batch_s), "--seconds", "100"]
        argv += ["--ledger", str(folder / "ledger.npz")]
        return started([sys.executable, *argv], folder / "simulator.log", dict(os.environ))

    made_up, _ = measure(simulated)
    print(f"One GPU, {1000 * batch_s:.0f} ms a batch; a second of Redis:")
    print("| | real, idle | simulated, idle | real, busy | simulated, busy |")
    print("| --- | ---: | ---: | ---: | ---: |")
    columns = [real[0], made_up[0], real[1], made_up[1]]
    names = sorted(set().union(*columns), key=lambda name: -max(c.get(name, 0.0) for c in columns))
    for name in names:
        values = " | ".join(f"{column.get(name, 0.0):.2f}" for column in columns)
        print(f"| {name} | {values} |")


def measure(start: Start) -> tuple[tuple[Figures, Figures], float]:
    """Run one worker; return what Redis did in a second, idle and busy, and its seconds for a batch."""
    with tempfile.TemporaryDirectory(prefix="pq-fleet-") as name, contextlib.ExitStack() as at_end:
        folder = Path(name)
        changes = {"state_dir": folder, "redis_url": None, "device": "cpu", "num_threads": 1}
        settings = Settings.load().model_copy(update=changes)
        server = RedisServer(folder)
        server.ensure()
        at_end.callback(server.stop)
        backend = at_end.enter_context(Backend.open(settings))
        at_end.enter_context(scheduler_process(settings, folder / "scheduler.log"))
        wait_until(lambda: backend.client.exists("pocqueue:2:leader"), 60, "the scheduler")
        time.sleep(2.0)
        connections = int(backend.client.info("clients")["connected_clients"])
        at_end.enter_context(start(settings, server, folder))
        wait_until(backend.pool.live, 120, "the worker")
        time.sleep(3.0)
        idle = _second(backend)
        idle["connections of the worker"] = (
            int(backend.client.info("clients")["connected_clients"]) - connections
        )
        draft = draft_spec(block_hash="0xb", public_key="key", window_s=4 * SECONDS)
        backend.store.create(
            decided(draft, deployed_model(backend, draft, None), r_target=R_TARGET)
        )
        time.sleep(3.0)
        busy = _second(backend)
        busy["connections of the worker"] = (
            int(backend.client.info("clients")["connected_clients"]) - connections
        )
        rate = backend.pool.live()[0].rates[SHAPE]
        return (idle, busy), draft.batch_size / rate


def _second(backend: Backend) -> Figures:
    """Return what Redis does in a second: commands by name, and milliseconds of its processor."""
    process = psutil.Process(int(backend.client.info("server")["process_id"]))
    backend.client.config_resetstat()
    before = process.cpu_times()
    time.sleep(SECONDS)
    after = process.cpu_times()
    spent_s = after.user + after.system - before.user - before.system
    found = {
        name.removeprefix("cmdstat_"): values["calls"] / SECONDS
        for name, values in backend.client.info("commandstats").items()
    }
    found = {name: value for name, value in found.items() if name not in IGNORED}
    return found | {"ms of Redis's processor": 1000 * spent_s / SECONDS}


@contextlib.contextmanager
def _real_worker(settings: Settings, _server: RedisServer, folder: Path) -> Iterator[object]:
    argv = [sys.executable, "-m", "celery", "-q", "-A", "pocqueue", "worker", "-Q", "gpu0"]
    with started(argv, folder / "worker.log", environment(settings)) as process:
        yield process


if __name__ == "__main__":
    main()
