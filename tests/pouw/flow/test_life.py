"""What a node says of itself while nobody is there."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocqueue.pouw.flow import life as life_module
from pocqueue.pouw.flow.core import Bell
from pocqueue.pouw.flow.life import Life


@pytest.mark.parametrize(("count", "said"), [(1, "for 2 s"), (0, "for 3 s")])
async def test_a_node_says_for_how_long_no_certificate_came(
    monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    """Which is longer after a slot without messages."""
    monkeypatch.setattr(life_module, "_ISOLATED_S", 2)
    monkeypatch.setattr(life_module, "_IDLE_SLOTS_S", 3)
    alerts = asyncio.Queue[str]()
    newest = SimpleNamespace(certificate=SimpleNamespace(count=count))
    state = SimpleNamespace(committee_in_office=object())
    made_up = SimpleNamespace(
        _slots=SimpleNamespace(newest=(b"", 1, newest), changed=Bell()),
        _core=SimpleNamespace(
            chain=SimpleNamespace(tip=SimpleNamespace(state=state)),
            alert=lambda _kind, detail: alerts.put_nowait(detail),
        ),
    )
    watching = asyncio.create_task(Life._watch_isolation(cast(Any, made_up)))
    async with asyncio.timeout(60):
        assert said in await alerts.get()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
