"""Pages that are open in a browser."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, Page, expect

from pocqueue.hosts.gateway.access import COOKIE
from tests.hosts.gateway.conftest import Gateway
from tests.support.browser import PATIENCE_MS


@contextlib.asynccontextmanager
async def open_page(
    browser: Browser, gateway: Gateway, wallet: str, *, signed_in: bool = True, **context: Any
) -> AsyncIterator[Page]:
    """Have the page of a wallet, which the gateway knows, open in a browser of its own.

    Args:
        signed_in: in a session of that wallet.
        context: of playwright's `new_context`.
    """
    expect.set_options(timeout=PATIENCE_MS)
    tab = await browser.new_context(**context)
    try:
        if signed_in:
            secret = gateway.store.owners.start_session(wallet)
            await tab.add_cookies([{"name": COOKIE, "value": secret, "url": gateway.url}])
        page = await tab.new_page()
        page.set_default_timeout(PATIENCE_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        # Chromium says so of each refusal; what the page makes of it is for the test to see.
        page.on(
            "console",
            lambda said: (
                problems.append(said.text)
                if said.type == "error" and "responded with a status of 4" not in said.text
                else None
            ),
        )
        await page.goto(f"{gateway.url}/app?wallet={wallet}")
        if context.get("java_script_enabled", True):
            await expect(page.locator("#live")).to_have_text("Live")
        yield page
        assert problems == []
    finally:
        await tab.close()
