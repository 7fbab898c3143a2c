"""One order of an account at a time; it is watched to its end, whatever that is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

import pytest

from pocqueue.cli.pouw_client import _name_for
from pocqueue.cli.pouw_order import client_node, order
from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.errors import InvalidTask, PouwError
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.wire.transactions import TASK_NAME

_ID = "ab" * 32
_SENT = {"id": _ID, "state": "sent", "slots": 0, "accuracy": None, "reason": None}
_TASK = MLTask(
    task_id="mine [/x]",
    task_type="image_classification",
    dataset_hash="digits",
    model_requirements={},
    reward_amount=50.0,
    deadline=1,
)


class _Client:
    """A node that has sent an order; what is seen of it is given."""

    def __init__(self, *seen: dict[str, Any], refuses: PouwError | None = None) -> None:
        self.seen, self.refuses = list(seen), refuses
        self.asked: list[str] = []
        self.is_running = False
        self.views = self

    async def start(self) -> None:
        """Run."""
        self.is_running = True

    async def stop(self) -> None:
        """Run no longer."""
        self.is_running = False

    async def order_task(self, task: MLTask, fee: float) -> str:
        """Return the order's id."""
        if self.refuses:
            raise self.refuses
        return _ID

    async def task(self, identifier: str) -> dict[str, Any]:
        """Return what is seen now."""
        self.asked.append(identifier)
        return self.seen.pop(0)


async def _ordered(client: _Client) -> dict[str, Any]:
    return await order(cast("PoUWNode", client), _TASK, 5.0, None, watch=True)


async def test_an_order_that_is_given_up_ends_the_watch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is asked for by its id, and the reason is told; a name with brackets is no markup."""
    refused = {**_SENT, "state": "refused", "reason": "deadline: it is over."}
    client = _Client(_SENT, refused)
    found = await _ordered(client)
    assert (found["name"], found["state"]) == ("mine [/x]", "refused")
    assert client.asked == [_ID, _ID]
    assert not client.is_running
    assert capsys.readouterr().err.splitlines() == [
        "mine [/x]: sent; 55 PAI go into escrow.",
        "mine [/x]: sent; no block has it yet",
        "mine [/x]: refused: deadline: it is over. Nothing went into escrow.",
    ]


async def test_an_order_that_is_not_taken_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """And is not waited for."""
    client = _Client(refuses=InvalidTask("no node is linked."))
    found = await _ordered(client)
    assert found == {"name": "mine [/x]", "state": "refused", "reason": "no node is linked."}
    assert "Task mine [/x] was not submitted: no node is linked." in capsys.readouterr().err


def test_an_account_has_one_order_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is told who is at it; another key, or the end of the first one, and it goes."""
    monkeypatch.setenv("POCQUEUE_POUW_DIR", str(tmp_path / "one"))
    with client_node([], 5.0) as first:
        with (
            pytest.raises(
                PouwError, match=rf"is running \(process {os.getpid()}\).*POCQUEUE_POUW_KEY"
            ),
            client_node([], 5.0),
        ):
            pass
        monkeypatch.setenv("POCQUEUE_POUW_DIR", str(tmp_path / "other"))
        with client_node([], 5.0) as other:
            assert other.config.key is not first.config.key
    monkeypatch.setenv("POCQUEUE_POUW_DIR", str(tmp_path / "one"))
    with client_node([], 5.0) as again:
        assert not again.get_status()["is_running"]


def test_a_name_is_made_of_any_file() -> None:
    """Of signs that the chain takes, by `transactions.TASK_NAME`."""
    for data, begins in (
        ("Übung 1.safetensors", "_bung 1_"),
        ("ü" * 99, "_" * 40),
        ("words", "words_"),
    ):
        made = _name_for(f"/data/{data}")
        assert made.startswith(begins)
        assert re.search(TASK_NAME, made)
