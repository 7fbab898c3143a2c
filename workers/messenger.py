"""Sends what a gateway has done elsewhere, in a thread of its own: a Redis that is away would hold up whoever sends.

Promises:
- At most one look a second, however often it is asked for: what a node says of itself is reason for one, and nodes are
  strangers. One that is asked for within a second of the last goes out when that second is over.
- At most a hundred placements a second; those beyond are one look, which finds all jobs that wait.
- What nobody takes in time is dropped (`SWEEP_EXPIRES_S`): the next sweep does it, and no gateway that was away finds a
  thousand of them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

from pocqueue.app import app
from pocqueue.rounds.task_names import (
    DELIVER_JOB,
    HOSTS_QUEUE,
    PLACE_JOBS,
    RELAY_PREFIX,
    SWEEP_EXPIRES_S,
    SWEEP_HOSTS,
)

if TYPE_CHECKING:
    from pocqueue.hosts.gateway.messenger import What

logger = logging.getLogger(__name__)

#: Seconds between two looks.
LOOK_S: Final = 1.0
#: Placements in `LOOK_S`.
MAX_PLACES: Final = 100

Send = Callable[..., Any]


class CeleryMessenger:
    """The messenger of a gateway that is a Celery worker.

    Args:
        send: sends a task, as Celery's `send_task` does.
        clock: seconds that only go forward.
    """

    def __init__(
        self, send: Send = app.send_task, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send_task, self._clock = send, clock
        #: Name, queue and arguments of a task; None: a look.
        self._waiting: queue.SimpleQueue[tuple[str, str, dict[str, Any]] | None] = (
            queue.SimpleQueue()
        )
        self._is_asked = threading.Event()
        threading.Thread(target=self._run, name="messenger", daemon=True).start()

    def look(self) -> None:
        """Have somebody look at once for nodes for the jobs that wait."""
        if not self._is_asked.is_set():
            # One that waits to be sent is enough.
            self._is_asked.set()
            self._waiting.put(None)

    def place(self, job_id: str) -> None:
        """Have somebody find a node for a job."""
        self._waiting.put((PLACE_JOBS, HOSTS_QUEUE, {"job_id": job_id}))

    def tell(self, relay: str, what: What, node_id: str, job_id: str = "", n: int = 0) -> None:
        """Have a gateway tell one of its nodes."""
        about = {"what": str(what), "node_id": node_id, "job_id": job_id, "n": n}
        self._waiting.put((DELIVER_JOB, f"{RELAY_PREFIX}{relay}", about))

    def _run(self) -> None:
        next_look_s = since_s = float("-inf")
        num_places, is_due = 0, False
        while True:
            now_s = self._clock()
            if is_due and now_s >= next_look_s:
                is_due, next_look_s = False, now_s + LOOK_S
                # From here on another one is news again.
                self._is_asked.clear()
                self._send(SWEEP_HOSTS, HOSTS_QUEUE, {}, SWEEP_EXPIRES_S)
                continue
            try:
                found = self._waiting.get(timeout=next_look_s - now_s if is_due else None)
            except queue.Empty:
                continue
            if found is None:
                is_due = True
                continue
            name, to, about = found
            if name != PLACE_JOBS:
                self._send(name, to, about)
                continue
            if (now_s := self._clock()) >= since_s + LOOK_S:
                since_s, num_places = now_s, 0
            num_places += 1
            if num_places > MAX_PLACES:
                is_due = True
            else:
                self._send(name, to, about, SWEEP_EXPIRES_S)

    def _send(
        self, name: str, to: str, about: dict[str, Any], expires_s: float | None = None
    ) -> None:
        try:
            self._send_task(name, kwargs=about, queue=to, ignore_result=True, expires=expires_s)
        except OperationalError as exc:
            logger.warning("%s is not sent; the next sweep does it. %s", name, exc)
