"""Whom wrong tokens are counted for."""

from __future__ import annotations

import pytest

from pocqueue.web.failures import subscriber


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2"),
        ("", "testclient"),
    ],
)
def test_addresses_of_one_subscriber(one: str, other: str) -> None:
    """Count as one."""
    assert subscriber(one) == subscriber(other)


def test_addresses_of_two_subscribers() -> None:
    """Count as two."""
    assert subscriber("2001:db8:1:2::1") != subscriber("2001:db8:1:3::1")
    assert subscriber("192.0.2.1") != subscriber("192.0.2.2")
