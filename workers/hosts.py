"""The gateway of GPU hosts: `celery -A pocqueue worker -Q relay.NAME,hosts`.

A boot step runs the web application in a thread. Sockets and owners are there whether Redis is or not; what happens
comes as a task: to `hosts` what any gateway can do, to `relay.NAME` what is for a node of this one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from kombu.exceptions import OperationalError
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

if TYPE_CHECKING:
    from pocqueue.hosts.gateway.messenger import What
    from pocqueue.hosts.gateway.service import GatewayService

logger = logging.getLogger(__name__)


#: Seconds between two looks at the jobs that wait.
LOOK_EVERY_S = 0.5

#: One gateway a process.
_service: GatewayService | None = None


class CeleryMessenger:
    """Sends tasks in a thread of its own, as a Redis that is away would hold up whoever sends.

    Args:
        look_every_s: seconds between two looks at the jobs that wait, however many are asked for: thousands of nodes
            that come back at once ask twice each, and one look is for all of them.
    """

    def __init__(self, look_every_s: float = LOOK_EVERY_S) -> None:
        self._look_every_s = look_every_s
        #: None: a look is asked for.
        self._waiting: queue.SimpleQueue[tuple[str, str, dict[str, Any]] | None] = (
            queue.SimpleQueue()
        )
        self._look = threading.Event()
        threading.Thread(target=self._run, name="messenger", daemon=True).start()

    def look(self) -> None:
        """Have somebody look soon for nodes for the jobs that wait: at once, if the last look is a while ago."""
        if not self._look.is_set():
            # One that waits to be sent is enough.
            self._look.set()
            self._waiting.put(None)

    def place(self, job_id: str) -> None:
        """Have somebody find a node for a job."""
        self._waiting.put((PLACE_JOBS, HOSTS_QUEUE, {"job_id": job_id}))

    def tell(self, relay: str, what: What, node_id: str, job_id: str = "", n: int = 0) -> None:
        """Have a gateway tell one of its nodes."""
        about = {"what": str(what), "node_id": node_id, "job_id": job_id, "n": n}
        self._waiting.put((DELIVER_JOB, f"{RELAY_PREFIX}{relay}", about))

    def _run(self) -> None:
        look_at = time.monotonic()
        while True:
            # Other messages do not wait for the next look's turn.
            left = max(0.0, look_at - time.monotonic()) if self._look.is_set() else None
            try:
                message = self._waiting.get(timeout=left)
            except queue.Empty:
                message = None
            if message is not None:
                self._send(*message)
            if self._look.is_set() and time.monotonic() >= look_at:
                self._look.clear()
                look_at = time.monotonic() + self._look_every_s
                self._send(SWEEP_HOSTS, HOSTS_QUEUE, {})

    def _send(self, name: str, to: str, about: dict[str, Any]) -> None:
        try:
            app.send_task(name, kwargs=about, queue=to, ignore_result=True)
        except OperationalError as exc:
            logger.warning("%s is not sent; the next sweep does it. %s", name, exc)


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
            _service.start()
        except PocqueueError as exc:
            refuse(exc)

    @override
    def stop(self, parent: Any) -> None:
        if _service is not None:
            _service.close()

    terminate = stop


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
