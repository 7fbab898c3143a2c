"""The gateway's own look at the ledger goes on, whatever it meets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.gateway.audit import Auditor
from pocqueue.hosts.gateway.metrics import Metrics
from pocqueue.hosts.store import HostStore
from tests.support.waiting import wait_until


def test_it_looks_again_once_the_database_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    """One that is away or damaged is said to be; what differs is a figure and a line, and so is that it does no more."""
    metrics = Metrics()
    ways: list[list[str] | Exception] = [
        *(DatabaseUnavailable("away"), DatabaseUnfit("damaged")),
        ["one"] * 12,
    ]
    looks = iter(ways)

    def differences() -> list[str]:
        found = next(looks, [])
        if isinstance(found, Exception):
            raise found
        return found

    store = cast(HostStore, SimpleNamespace(ledger=SimpleNamespace(differences=differences)))
    with Auditor(store, metrics, first_s=0, every_s=0.01) as auditor:
        auditor.start()
        wait_until(lambda: metrics.ledger_mismatch == 0, message="a look without a difference")
    assert "is looked at later. away" in caplog.text
    assert "is looked at later. damaged" in caplog.text
    assert caplog.text.count("The ledger differs: one") == 10
    assert "12 differences; `pocqueue hosts audit` names all." in caplog.text
