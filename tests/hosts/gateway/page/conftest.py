"""A gateway whose machines, which have no socket, stay online however slow the test is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hosts.gateway.conftest import Gateway


@pytest.fixture
def gateway(make: Callable[..., Gateway]) -> Gateway:
    """A gateway at work."""
    return make(offline_seconds=3600)
