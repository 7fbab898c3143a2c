"""Torch computes in these tests as in the child, and as before behind them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.pouw.training.models import fixed_arithmetic


@pytest.fixture(autouse=True)
def _arithmetic() -> Iterator[None]:
    with fixed_arithmetic():
        yield
