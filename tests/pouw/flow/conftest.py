"""The trainer of these tests: its child imports torch once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.training.trainer import Trainer


@pytest.fixture(scope="package", autouse=True)
def _one_trainer() -> Iterator[None]:
    with Trainer.shared():
        yield
