"""What a gateway has done elsewhere: never more of it than it takes, whatever nodes say."""

from __future__ import annotations

import threading
from typing import Any

from kombu.exceptions import OperationalError

from pocqueue.hosts.gateway.messenger import What
from pocqueue.rounds.task_names import DELIVER_JOB, PLACE_JOBS, SWEEP_EXPIRES_S, SWEEP_HOSTS
from tests.support.waiting import Clock, wait_until
from workers.messenger import LOOK_S, MAX_PLACES, CeleryMessenger


class Sent:
    """The tasks that were sent."""

    def __init__(self) -> None:
        self.is_away = False
        self.tasks: list[tuple[str, dict[str, Any]]] = []
        self.marks = threading.Semaphore(0)

    def __call__(self, name: str, **options: Any) -> None:
        self.tasks.append((name, options))
        if options["kwargs"].get("node_id") == "mark":
            self.marks.release()
        if self.is_away:
            raise OperationalError("no Redis")

    def num(self, name: str) -> int:
        """Count the tasks of a name."""
        return sum(one == name for one, _ in self.tasks)


def wait_for_all(messenger: CeleryMessenger, sent: Sent) -> None:
    """Wait until what was asked for was sent, as far as it is to be."""
    messenger.tell("here", What.DRAIN, "mark")
    assert sent.marks.acquire(timeout=60)


def test_a_flood_is_one_look_a_second() -> None:
    """A node that sends self-tests without end, say; the last of them is not forgotten."""
    sent, clock = Sent(), Clock()
    messenger = CeleryMessenger(sent, clock)
    for _ in range(1000):
        messenger.look()
        wait_for_all(messenger, sent)
    assert sent.num(SWEEP_HOSTS) == 1
    clock.now_s += LOOK_S
    wait_until(lambda: sent.num(SWEEP_HOSTS) == 2, message="the look of the next second")
    clock.now_s += LOOK_S
    wait_for_all(messenger, sent)
    assert sent.num(SWEEP_HOSTS) == 2
    looks = [options for name, options in sent.tasks if name == SWEEP_HOSTS]
    assert {one["expires"] for one in looks} == {SWEEP_EXPIRES_S}


def test_a_flood_of_placements_is_a_look() -> None:
    """Which finds all jobs that wait; deliveries are all sent, and wait for nobody."""
    sent, clock = Sent(), Clock()
    messenger = CeleryMessenger(sent, clock)
    for number in range(MAX_PLACES + 50):
        messenger.place(f"job {number}")
        messenger.tell("here", What.JOB, "node", f"job {number}", 1)
    wait_for_all(messenger, sent)
    assert sent.num(PLACE_JOBS) == MAX_PLACES
    assert sent.num(SWEEP_HOSTS) == 1
    assert sent.num(DELIVER_JOB) == MAX_PLACES + 50 + 1
    placed = [options for name, options in sent.tasks if name == PLACE_JOBS]
    assert {one["expires"] for one in placed} == {SWEEP_EXPIRES_S}
    # One that comes too late is told that by the database, and is not dropped before.
    told = [options for name, options in sent.tasks if name == DELIVER_JOB]
    assert {one["expires"] for one in told} == {None}
    clock.now_s += LOOK_S
    messenger.place("another")
    wait_for_all(messenger, sent)
    assert sent.num(PLACE_JOBS) == MAX_PLACES + 1


def test_a_redis_that_is_away_ends_nothing() -> None:
    """What was not sent is left to the next sweep."""
    sent, clock = Sent(), Clock()
    messenger = CeleryMessenger(sent, clock)
    sent.is_away = True
    messenger.look()
    wait_for_all(messenger, sent)
    sent.is_away = False
    clock.now_s += LOOK_S
    messenger.look()
    wait_until(lambda: sent.num(SWEEP_HOSTS) == 2, message="the next look")
