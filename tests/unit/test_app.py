"""What our Celery application does beyond configuration."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.app import PatientConnection


class Orphan:
    """A channel whose transport is gone, as kombu leaves it where Redis goes away twice in a row."""

    def close(self) -> None:
        connection: Any = None
        connection.hostname  # noqa: B018 - what kombu does


def test_a_channel_that_lost_its_transport_does_not_end_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Closing it fails; the connection is closed all the same."""
    with PatientConnection("memory://") as connection:
        connection.maybe_close_channel(Orphan())
    assert "its ranges come back" in caplog.text
