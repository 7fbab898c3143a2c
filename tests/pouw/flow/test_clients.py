"""What a client's order is refused for before anything is signed."""

from __future__ import annotations

from typing import cast

import pytest

from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.errors import InvalidTask
from pocqueue.pouw.flow.clients import TaskDesk
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.flow.orders import Orders


@pytest.mark.parametrize("name", ["", "a" * 65, "mine\n", "\x1b[2J", "Äpfel"])
async def test_a_name_that_not_any_terminal_may_show(name: str) -> None:
    """It says which characters are allowed, and asks nobody for anything."""
    desk = TaskDesk(cast("Core", None), cast("Orders", None), cast("Datasets", None))
    task = MLTask(name, "image_classification", "digits", {}, reward_amount=50.0, deadline=1)
    with pytest.raises(InvalidTask, match=r"task_id is .*allowed: 1 to 64 characters of ASCII"):
        await desk.submit(task, fee=5.0)
