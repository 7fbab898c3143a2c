"""What a gateway sends by Celery."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.app import app
from pocqueue.rounds.task_names import PLACE_JOBS, SWEEP_HOSTS
from tests.support.waiting import wait_until
from workers.hosts import CeleryMessenger

PATIENCE_S = 120.0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that were sent, in their order."""
    names: list[str] = []

    def send(name: str, **_options: Any) -> None:
        names.append(name)

    monkeypatch.setattr(app, "send_task", send)
    return names


def test_however_many_ask_for_a_look_there_is_one_at_a_time(sent: list[str]) -> None:
    """Thousands of nodes come back at once; what else is to be sent does not wait for the next look."""
    messenger = CeleryMessenger(look_every_s=3600)
    for number in range(1000):
        messenger.look()
        messenger.place(str(number))
    wait_until(lambda: sent.count(PLACE_JOBS) == 1000, PATIENCE_S, "all messages")
    assert sent.count(SWEEP_HOSTS) == 1


def test_a_look_that_was_asked_for_during_the_pause_comes_after_it(sent: list[str]) -> None:
    """Nobody's job waits for the scheduler's sweep."""
    messenger = CeleryMessenger(look_every_s=0.05)
    for number in range(1, 4):
        messenger.look()
        wait_until(lambda: sent.count(SWEEP_HOSTS) == number, PATIENCE_S, "a look")  # noqa: B023 - waited here
    assert sent == [SWEEP_HOSTS] * 3
