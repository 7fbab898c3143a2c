"""How bodies become one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pocqueue.node.messages import merged


def body(*nonces: int, **changes: Any) -> str:
    return json.dumps(
        {"key": "k", "items": [{"nonce": n} for n in nonces], "of": {"k_dim": 2}} | changes
    )


def test_lists_are_joined_in_order() -> None:
    """What is the same in all stands once."""
    joined, num = merged([body(3, 1), body(), body(2), body(1)])
    assert num == 4
    assert json.loads(joined) == json.loads(body(3, 1, 2, 1))


def test_one_stays_as_it_is() -> None:
    """To the byte."""
    assert merged([body(5)]) == (body(5), 1)


@pytest.mark.parametrize(
    "other",
    [
        {"key": "other"},
        {"of": {"k_dim": 3}},
        {"request_id": "r"},
        {"items": None},
        {"items": "text"},
    ],
)
def test_what_says_something_else_ends_it(other: dict[str, Any]) -> None:
    """Also where one behind it would fit."""
    joined, num = merged([body(1), body(2), body(3, **other), body(4)])
    assert num == 2
    assert json.loads(joined) == json.loads(body(1, 2))
