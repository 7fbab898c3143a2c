"""The page with no machine, one and two hundred, on a telephone and on a screen: fits, small, and open to everybody."""

from __future__ import annotations

from typing import Any, Literal

import httpx
import pytest
from playwright.async_api import Browser, ViewportSize, expect

from pocqueue.hosts.gateway.page.view import PAGE, Asked, read
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.gateway.page.fleet import fleet
from tests.hosts.gateway.page.open_page import open_page
from tests.support.browser import axe, chromium

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

_OVERFLOW = """() => [...document.querySelectorAll("body, body *")]
  .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
    || (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX !== "visible"
      && one.className !== "unseen" && one.tagName !== "THEAD" && one.tagName !== "INPUT"))
  .map((one) => one.outerHTML.slice(0, 200))"""


async def check(
    browser: Browser,
    gateway: Gateway,
    wallet: str,
    width: int,
    scheme: Literal["light", "dark"],
    *,
    signed_in: bool = True,
) -> None:
    """See that nothing is wider than the window, and that axe finds nothing, with a menu open and a token shown."""
    looks: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    async with open_page(browser, gateway, wallet, signed_in=signed_in, **looks) as page:
        if await page.locator("#nodes summary").count():
            await page.locator("#nodes summary").first.click()
        await page.get_by_role("button", name="Generate node token").click()
        await expect(page.locator("#token code").first).to_be_visible()
        assert await page.evaluate(_OVERFLOW) == [], (width, scheme)
        assert await axe(page) == [], (width, scheme)


async def test_none_and_a_few_machines(gateway: Gateway) -> None:
    """On a telephone and on a screen, in both colours, for owners and others."""
    none, few = fleet(gateway.store, 0), fleet(gateway.store, 6)
    async with chromium() as browser:
        await check(browser, gateway, none, 380, "dark")
        await check(browser, gateway, few, 380, "light")
        await check(browser, gateway, few, 1400, "dark")
        await check(browser, gateway, few, 1400, "light", signed_in=False)
        async with open_page(browser, gateway, few, java_script_enabled=False) as page:
            for width in (380, 760, 1119, 1120, 1359, 1360, 1400):
                await page.set_viewport_size({"width": width, "height": 900})
                assert await page.evaluate(_OVERFLOW) == [], width


@pytest.mark.long
async def test_two_hundred_machines_are_pages(gateway: Gateway) -> None:
    """Of machines, jobs and rows of pay: a page is small, each machine is on one of them, filters count all."""
    wallet = fleet(gateway.store, 200)
    secret = gateway.store.owners.start_session(wallet)
    headers = {"Cookie": f"pocqueue_session={secret}"}
    async with chromium() as browser:
        narrow = ViewportSize(width=380, height=900)
        async with open_page(browser, gateway, wallet, viewport=narrow) as page:
            assert await page.evaluate(_OVERFLOW) == []
            seen: list[str] = []
            while True:
                keys = await page.locator("#nodes > tbody").evaluate_all(
                    "(rows) => rows.map((row) => row.dataset.key)"
                )
                assert len(keys) <= PAGE
                seen += keys
                more = page.get_by_role("link", name="Older nodes")
                if not await more.count():
                    break
                await more.click()
                await page.wait_for_load_state("domcontentloaded")
            assert len(seen) == len(set(seen)) == 200
            await page.get_by_role("link", name="Newest nodes").click()
            await page.get_by_role("link", name="Offline 25").click()
            await expect(page.locator("#nodes .status.offline")).to_have_count(25)
            assert await page.locator("#nodes > tbody").count() == 25
            assert await page.get_by_role("link", name="Older nodes").count() == 0
            for what in ("jobs", "earnings"):
                newest = await page.locator(f"#{what} > tbody").first.get_attribute("data-key")
                await page.get_by_role("link", name=f"Older {what}").click()
                await expect(page.get_by_role("link", name=f"Newest {what}")).to_be_visible()
                assert await page.locator(f'#{what} > [data-key="{newest}"]').count() == 0
                assert await page.locator(f"#{what} > tbody").count() <= PAGE
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=120) as http:
        for path in ("/app", "/app?nodes=x&jobs=.&earnings=-1&show=nobody", "/app?nodes=1.x"):
            reply = await http.get(path, headers=headers)
            assert reply.status_code == 200
            assert len(reply.content) < 400_000
        query = {"wallet": wallet}
        async with http.stream("GET", "/app/events", params=query, headers=headers) as events:
            lines = events.aiter_lines()
            while not (first := await anext(lines)).startswith("data:"):
                pass
            assert len(first) < 400_000
            node = read(gateway.store, Asked(wallet), is_owner=True).nodes[0]
            gateway.store.nodes.set_state(node.id, "draining", actor=wallet, wallet=wallet)
            gateway.service.hub.changes.tell(wallet)
            while not (line := await anext(lines)).startswith("data:"):
                pass
            assert node.id in line
            assert len(line) < 20_000
