"""What is said of a round: to people and to programs."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.cli.report import json_round, print_round
from pocqueue.rounds.backend import Backend
from tests.support.rounds import round_with_proofs


def shown(
    backend: Backend, round_id: str, capsys: pytest.CaptureFixture[str]
) -> tuple[str, dict[str, Any]]:
    """Return the line about callbacks, or nothing, and the same for programs."""
    status, posted = backend.store.status(round_id), backend.callbacks.progress(round_id)
    entries = list(backend.store.iter_proofs(status))
    print_round(status, entries, posted)
    lines = " ".join(capsys.readouterr().out.split()).partition("callbacks ")[2]
    return lines.partition(" best nonces")[0], json_round(status, entries, posted, None)


def test_who_started_a_round_sees_how_far_its_callbacks_are(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the receiver has, what it refuses, and why nothing comes there."""
    round_id = round_with_proofs(backend, 3, callback_url="http://receiver/")
    line, found = shown(backend, round_id, capsys)
    assert line == "0 of 3 valid nonces posted"
    assert found["callbacks"] == {"delivered": 0, "aside": 0, "error": ""}

    cursors = [one.cursor for one in backend.store.iter_proofs(backend.store.status(round_id))]
    ((_, token),) = backend.callbacks.claim_due(60.0)
    assert backend.callbacks.delivered(round_id, token, cursors[0], 1)
    assert backend.callbacks.put_aside(round_id, token, cursors[1], 1)
    assert backend.callbacks.failed(round_id, token, 0, "1 nonce not taken: HTTP 503")
    line, found = shown(backend, round_id, capsys)
    assert line == (
        "1 of 3 valid nonces posted, 1 refused and tried again; 1 nonce not taken: HTTP 503"
    )
    assert found["callbacks"] == {
        "delivered": 1,
        "aside": 1,
        "error": "1 nonce not taken: HTTP 503",
    }


def test_a_round_without_callbacks_says_nothing_of_them(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody asked for any."""
    line, found = shown(backend, round_with_proofs(backend, 1), capsys)
    assert (line, found["callbacks"]) == ("", None)
