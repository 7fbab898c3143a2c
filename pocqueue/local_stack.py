"""Everything that a round needs, on this machine: Redis, a scheduler, workers and Flower.

`pocqueue up` shows it, `pocqueue demo` uses it quietly. The parts are the same programs that an
operator would start by hand; `ProcessTree` keeps them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pocqueue
from pocqueue.engine.base import is_remote
from pocqueue.engine.devices import parse_queue
from pocqueue.errors import ProcessError, SettingsError
from pocqueue.processes.child import Sink
from pocqueue.processes.stack_lock import stack_lock
from pocqueue.processes.tree import ProcessTree, drop, log_files
from pocqueue.rounds.pool import Pool
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.task_names import HOSTS_QUEUE, RELAY_PREFIX
from pocqueue.settings import (
    DELEGATION_PREFIX,
    HOSTS_PREFIX,
    DelegationSettings,
    HostsSettings,
    Settings,
)
from pocqueue.web.listener import listen, url_of

#: The highest number of workers, as queue names have three digits.
MAX_GPUS = 1000

# Beginning of Celery's warning about root, which is about pickle; our workers take JSON only.
_ROOT_WARNING = "ignore:You're running the worker with superuser privileges"


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the stack."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  #: beside that of the settings


@dataclass(frozen=True, slots=True)
class LocalStack:
    """What `local_stack` has started."""

    tree: ProcessTree
    queues: tuple[str, ...]  #: GPU queues, one worker each
    flower_url: str | None  #: None without Flower
    log_dir: Path | None  #: where the processes' logs are; None: they went to a sink

    def wait_live(self, pool: Pool, timeout_s: float) -> None:
        """Wait until a GPU is in the pool.

        Raises:
            ProcessError: a process ended for good, or no GPU came in time.
        """
        logs = "" if self.log_dir is None else f"; the logs are in {self.log_dir}"
        deadline = time.monotonic() + timeout_s
        while not pool.live():
            if failure := self.tree.wait(0.02):
                raise ProcessError(failure.message)
            if time.monotonic() > deadline:
                raise ProcessError(f"No GPU joined the pool within {timeout_s:.0f} s{logs}.")


@contextlib.contextmanager
def local_stack(
    settings: Settings,
    *,
    gpus: int | None = None,
    flower: bool = True,
    delegation: bool = False,
    hosts: bool = False,
    host_queues: bool = False,
    sink: Sink = drop,
    log_dir: Path | None = None,
) -> Iterator[LocalStack]:
    """Start everything; stop it, in the reverse order, at the end of the block.

    Checks first and starts nothing if one fails. Returns when all processes run, which is before
    the workers have loaded their model: they join the pool when they have.

    Args:
        settings: what all of the processes get, whatever the environment says.
        gpus: number of workers; None: one for each CUDA device, or one on the CPU; 0: for a gateway alone.
        flower: start Flower at `settings.flower_address` and `settings.flower_port` (0: any).
        delegation: serve the delegation API, as the DELEGATION_ variables say.
        hosts: serve GPU hosts, as the POCQUEUE_HOSTS_ variables say.
        host_queues: name the queues HOST.gpu0, for several machines on one Redis.
        sink: gets the processes' lines; see `ProcessTree`.
        log_dir: folder for a log file of each process instead.

    Raises:
        ProcessError: something like it runs on this state folder, or Redis did not start.
        SettingsError: a setting does not fit, such as a port that is taken.
    """
    if gpus is not None and not int(not hosts) <= gpus <= MAX_GPUS:
        raise SettingsError(f"--gpus is {gpus}; allowed: 1 to {MAX_GPUS}.")
    with contextlib.ExitStack() as at_end:
        # First, as another one that runs here has the ports, too.
        lock_fd = at_end.enter_context(stack_lock(settings.state_dir))
        address, port = settings.flower_address, settings.flower_port
        if flower:
            choices = "choose another with --flower-port, or leave Flower out with --no-flower"
            port = _free_port(address, port, Settings.variable("flower_"), choices, "ADDRESS")
        if settings.metrics_port is not None:
            prefix = Settings.variable("metrics_")
            choices = f"choose another with {prefix}PORT, or unset it"
            _free_port(settings.metrics_address, settings.metrics_port, prefix, choices, "ADDRESS")
        if delegation:
            _check_delegation(settings)
        relay = _check_hosts(settings) if hosts else None
        env = environment(settings)
        num_workers = default_workers(settings, env) if gpus is None else gpus
        prefix = f"{settings.host_name}." if host_queues else ""
        if parse_queue(f"{prefix}gpu0") is None:
            raise SettingsError(
                f"{Settings.variable('host_name')} is {settings.host_name!r} and cannot be part of a queue's "
                "name; allowed: letters, digits, dots, - and _."
            )
        queues = tuple(f"{prefix}gpu{number}" for number in range(num_workers))
        stages = services(
            settings,
            queues,
            delegation=delegation,
            relay=relay,
            flower_port=port if flower else None,
        )
        server = RedisServer(settings.state_dir) if settings.redis_url is None else None
        keep = ["--keep"] if server is not None and server.is_running() else []
        if server is not None and not keep:
            # Left as it was found. `pocqueue redis run` stops it, unless that was killed: it is no child.
            at_end.callback(server.stop)
        tree = at_end.enter_context(ProcessTree(sink if log_dir is None else log_files(log_dir)))
        if server is not None:
            server.ensure()
            tree.add("redis", _ours("redis", "run", *keep), env, stop_signal=signal.SIGINT)
            tree.start()
        for stage in stages:
            for service in stage:
                # They hold the lock too: while one of them is still ending, nobody starts a second stack,
                # and `redis run`, which does not hold it, keeps Redis for them.
                own = {**env, **service.env}
                tree.add(service.name, service.argv, own, pass_fds=[lock_fd])
            tree.start()
        url = url_of(address, port) if flower else None
        yield LocalStack(tree, queues, url, log_dir)


def _free_port(host: str, port: int, prefix: str, choices: str, host_variable: str = "HOST") -> int:
    """Return a port that one of the processes is going to listen on: this one, or a free one for 0."""
    with listen(host, port, prefix, host_variable=host_variable, otherwise=choices) as listener:
        return int(listener.getsockname()[1])


def _check_delegation(settings: Settings) -> None:
    """Find what would keep the big node's API from starting."""
    from pocqueue.delegation.app import check_service

    delegation = DelegationSettings.load()
    check_service(settings, delegation)
    choices = f"choose another with {DELEGATION_PREFIX}PORT"
    _free_port(delegation.host, delegation.port, DELEGATION_PREFIX, choices)


def _check_hosts(settings: Settings) -> str:
    """Find what would keep the gateway of GPU hosts from starting; return its name."""
    hosts = HostsSettings.load()
    try:
        from pocqueue.hosts.gateway.service import check_service
    except ImportError as exc:
        raise SettingsError(
            f"A gateway of GPU hosts takes more packages ({exc}): pip install 'pocqueue[hosts]'."
        ) from None
    check_service(settings, hosts)
    for port, prefix in ((hosts.port, HOSTS_PREFIX), (hosts.ws_port, f"{HOSTS_PREFIX}WS_")):
        choices = f"choose another with {prefix}PORT"
        _free_port(hosts.host, port, prefix, choices)
    return hosts.relay_name


def services(
    settings: Settings,
    queues: Sequence[str],
    *,
    delegation: bool,
    relay: str | None = None,
    flower_port: int | None,
) -> list[list[Service]]:
    """Return what runs beside Redis, in stages: each starts, and in the reverse order ends, as a whole."""
    own = {}
    if settings.device == "cpu" and len(queues) > 1 and settings.num_threads is None:
        # Several workers on the CPU share its cores: each would take all of them.
        cores = len(os.sched_getaffinity(0))
        own = {Settings.variable("num_threads"): str(max(1, cores // len(queues)))}
    workers = [Service("io", _celery("worker", "-Q", "io"))] if queues else []
    workers += [Service(queue, _celery("worker", "-Q", queue), own) for queue in queues]
    if relay is not None:
        names = f"{RELAY_PREFIX}{relay},{HOSTS_QUEUE}"
        workers.append(Service("hosts", _celery("worker", "-Q", names)))
    stages = [[Service("scheduler", _ours("scheduler"))], workers]
    if delegation:
        stages.append([Service("delegation", _ours("delegation", "serve"))])
    if flower_port is not None:
        own = {Settings.variable("flower_port"): str(flower_port)}
        stages.append([Service("flower", _flower(), own)])
    return stages


def environment(settings: Settings) -> dict[str, str]:
    """Return our environment with exactly these settings in it."""
    env = dict(os.environ)
    for variable, value in settings.variables().items():
        env.pop(variable, None)
        if value is not None:
            env[variable] = value
    # Lines arrive when they are written, not when a buffer is full.
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONWARNINGS"] = ",".join(filter(None, [env.get("PYTHONWARNINGS"), _ROOT_WARNING]))
    return env


def default_workers(settings: Settings, env: Mapping[str, str]) -> int:
    """Return how many workers to start if nobody says: one for each group of CUDA devices, or one.

    Args:
        env: environment of the workers.
    """
    # `cpu` and `cuda:K` name one device, and so does the URL of a server.
    if settings.device not in {"auto", "cuda"} or is_remote(settings.engine):
        return 1
    return max(1, count_cuda_devices(env) // settings.tensor_parallel)


def has_gpu_driver() -> bool:
    """Say whether this machine has a driver of NVIDIA's or AMD's GPUs."""
    if Path("/dev/kfd").exists():  # AMD; torch calls its GPUs CUDA devices too
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def count_cuda_devices(env: Mapping[str, str]) -> int:
    """Count the CUDA devices that the workers will find, 0 without torch's CUDA.

    torch is asked, as it decides; in a process of its own, as it would cost this one, which lives
    long and does little, two seconds and some hundred megabytes. Where there is no driver at all it
    is not asked.

    Raises:
        ProcessError: torch cannot be imported.
    """
    if not has_gpu_driver():
        return 0
    code = "from pocqueue.engine.devices import cuda_device_count; print(cuda_device_count())"
    done = subprocess.run(  # noqa: S603 - our own interpreter and code, no shell
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ProcessError(f"The GPUs cannot be counted ({reason}): give their number with --gpus.")
    return int(done.stdout.split()[-1])


def _ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pocqueue", *arguments]


def _celery(*arguments: str) -> list[str]:
    # -q: without the banner.
    return [sys.executable, "-m", "celery", "-q", "-A", "pocqueue", *arguments]


def _flower() -> list[str]:
    package = Path(pocqueue.__file__).parent
    # As the wheel ships it; in a checkout it is with the other files that an operator edits.
    candidates = [package / "_flowerconfig.py", package.parent / "config" / "flowerconfig.py"]
    for path in candidates:
        if path.is_file():
            return _celery("flower", f"--conf={path}")
    raise ProcessError(f"Flower's configuration is not at {candidates[-1]}: use --no-flower.")
