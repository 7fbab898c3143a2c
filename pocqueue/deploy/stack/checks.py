"""What is looked at before pocqueue is put on a server: ports of its roles, the GPUs that are named, room for the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host
from pocqueue.deploy.facts.docker import DockerFacts
from pocqueue.deploy.facts.gpu import GpuFacts, gpu_facts, read_gpus
from pocqueue.deploy.facts.stack import StackFacts
from pocqueue.deploy.facts.system import read_system, system_facts
from pocqueue.deploy.preflight.checks import Check, Seen, Wanted, check
from pocqueue.deploy.preflight.containers import port_checks
from pocqueue.deploy.stack.units import units_of
from pocqueue.deploy.steps.mounted import looked
from pocqueue.deploy.words import Command, Secret

_GIB = 1 << 30


async def stack_checks(
    host: Host, facts: StackFacts, values: Mapping[str, str | Secret]
) -> list[Check]:
    """Return the table of checks.

    Args:
        host: is read only.
        facts: what is there of pocqueue.
        values: its variables.

    Raises:
        StepFailed, UnexpectedAnswer: something cannot be read.
    """
    conf = host.conf
    system = read_system(await looked(host, "preflight", system_facts("/", ())))
    gpus = read_gpus(await looked(host, "preflight", gpu_facts()))
    seen = Seen(system, gpus, DockerFacts("", "", False), time.time())
    # The Redis of the role listens on a socket of its own folder.
    roles = frozenset(conf.pocqueue_role) - {"redis"}
    found = [*port_checks(seen, Wanted(num_gpus=0, roles=roles))]
    if "worker" not in roles or values.get("POCQUEUE_DEVICE") == "cpu":
        return found
    weights = None
    shares = values.keys() & {"POCQUEUE_ENGINE", "POCQUEUE_TENSOR_PARALLEL"}
    if conf.pocqueue_model.startswith("/") and not shares:
        words = ("find", "-L", conf.pocqueue_model, "-maxdepth", "1", "-name", "*.safetensors")
        listed = await looked(host, "preflight", Command((*words, "-printf", "%s\\n"), sudo=True))
        weights = sum(map(int, listed.split()))
    return [*found, *worker_checks(conf, gpus, facts, weights)]


def worker_checks(
    conf: Conf, gpus: GpuFacts, facts: StackFacts, weights: int | None
) -> Iterator[Check]:
    """Return the checks of the GPUs that are named.

    Args:
        conf: of the server.
        gpus: that are there.
        facts: of workers that run: their model is in their GPU's memory already.
        weights: bytes of the model's; None: not known, and not checked.
    """
    there = {gpu.index: gpu for gpu in gpus.gpus}
    highest = max(conf.pocqueue_gpus)
    yield check(
        *(
            "GPUs",
            "gpu-numbers",
            set(conf.pocqueue_gpus) <= there.keys(),
        ),
        f"{len(there)} there" if there else f"none: {gpus.state.value}",
        f"GPU {highest} of POCQUEUE_GPUS",
        "Name GPUs that are there; POCQUEUE_DEVICE=cpu in POCQUEUE_ENV_FILE needs none.",
    )
    if weights is None:
        return
    need = weights * 1.3 + _GIB
    idle = [
        unit.gpu
        for unit in units_of(conf)
        if unit.gpu is not None and facts.units[unit.name].state != "active"
    ]
    full = [there[n] for n in idle if n in there and there[n].free_mib * (1 << 20) < need]
    shown = ", ".join(f"GPU {gpu.index}: {gpu.free_mib / 1024:.1f} GiB free" for gpu in full)
    yield check(
        *("GPUs", "gpu-room", not full, shown or "free"),
        f"{need / _GIB:.1f} GiB for the model: its weights, 30 % of them, and 1 GiB",
        "Something else has the memory: use other GPUs, or engine vllm-server on that model's server.",
    )
