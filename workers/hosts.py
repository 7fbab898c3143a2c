"""The gateway of GPU hosts: `celery -A pocqueue worker -Q relay.NAME,hosts`.

A boot step runs the web application in a thread. Sockets and owners are there whether Redis is or not; what happens
comes as a task: to `hosts` what any gateway can do, to `relay.NAME` what is for a node of this one.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from typing_extensions import override

from pocqueue.app import app
from pocqueue.errors import PocqueueError, SettingsError
from pocqueue.rounds.task_names import (
    DELIVER_JOB,
    HOSTS_QUEUE,
    PLACE_JOBS,
    RELAY_PREFIX,
    SWEEP_HOSTS,
)
from pocqueue.settings import settings
from workers.boot import StoreStep, backend, refuse
from workers.messenger import CeleryMessenger

if TYPE_CHECKING:
    from pocqueue.hosts.gateway.service import GatewayService


#: One gateway a process.
_service: GatewayService | None = None


def relay_of(queues: list[str]) -> str | None:
    """Return the gateway's name among a worker's queues; None: it is no gateway.

    Raises:
        SettingsError: there are two of them, or one beside queues of something else.
    """
    found = [name for name in queues if name.startswith(RELAY_PREFIX)]
    if not found:
        return None
    if len(found) > 1 or set(queues) - {HOSTS_QUEUE, *found}:
        raise SettingsError(
            f"-Q names {', '.join(queues)}; a gateway of GPU hosts serves its own queue and {HOSTS_QUEUE}: "
            f"`celery -A pocqueue worker -Q {found[0]},{HOSTS_QUEUE}`."
        )
    return found[0].removeprefix(RELAY_PREFIX)


class HostsStep(bootsteps.StartStopStep):
    """Boot step of a gateway; starts before, stops after, the consumer."""

    requires = (StoreStep,)

    @override
    def include_if(self, parent: Any) -> bool:
        try:
            self.relay = relay_of(list(parent.app.amqp.queues.consume_from))
        except PocqueueError as exc:
            refuse(exc)
        return self.relay is not None

    @override
    def start(self, parent: Any) -> None:
        global _service
        assert self.relay is not None
        try:
            from pocqueue.hosts.gateway.service import GatewayService
        except ImportError as exc:
            refuse(
                SettingsError(
                    f"A gateway of GPU hosts takes more packages ({exc}): pip install 'pocqueue[hosts]'."
                )
            )
        from pocqueue.rounds.relays import Relays

        try:
            relays = Relays(backend().client, backend().url)
            _service = GatewayService(self.relay, settings(), CeleryMessenger(), relays)
            # Before anybody connects: what is frozen is never given back.
            _spare_the_collector()
            _service.start()
        except PocqueueError as exc:
            refuse(exc)

    @override
    def stop(self, parent: Any) -> None:
        if _service is not None:
            _service.close()

    terminate = stop


def _spare_the_collector() -> None:
    """Look for garbage as rarely as a process does well that has thousands of agents, all of whose objects stay.

    Each look through all of them stops the process: with Python's own numbers some twenty times while they come in.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


assert app.steps is not None
app.steps["worker"].add(HostsStep)


@app.task(name=PLACE_JOBS)
def place_job(*, job_id: str) -> str:
    """Find a node for a job, and have its gateway send it there."""
    assert _service is not None
    return _service.place(job_id)


@app.task(name=SWEEP_HOSTS)
def sweep() -> str:
    """End leases that ran out, and find nodes for the jobs that wait."""
    assert _service is not None
    return _service.sweep()


@app.task(name=DELIVER_JOB)
def deliver(*, what: str, node_id: str, job_id: str = "", n: int = 0) -> str:
    """Tell a node of this gateway."""
    assert _service is not None
    return _service.tell(what, node_id, job_id, n)
