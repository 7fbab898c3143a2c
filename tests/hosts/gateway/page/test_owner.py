"""The owner's page in a real browser, with a real key in its wallet; and the same page without JavaScript."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable

import httpx
import pytest
from playwright.async_api import Page, expect

from pocqueue.hosts import wallets
from pocqueue.hosts.gateway import limits
from tests.hosts.agents import NewAgent, OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.support.browser import PATIENCE_MS, WALLET, chromium
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def token_on(page: Page) -> str:
    """Return the token in the command that the page shows."""
    code = page.locator("#token code").first
    await expect(code).to_contain_text("pocqueue agent --endpoint ws://127.0.0.1:")
    found = re.search(r"--token (\S+)", await code.inner_text())
    assert found is not None
    return found[1]


@pytest.mark.parametrize("kind", ["standard", "injected"])
async def test_an_owner_signs_in_and_watches(make: Callable[..., Gateway], kind: str) -> None:
    """Wallet, token, a machine that comes, works and earns, all of it without a reload."""
    gateway = make(timings={"first_job_s": 1.0})
    async with chromium() as browser:
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda said: problems.append(said.text) if said.type == "error" else None
        )
        await page.add_init_script(WALLET.replace("KIND", kind))
        await page.goto(gateway.url)
        await expect(page.get_by_role("heading", name="GPU Hosts (Beta)")).to_be_visible()
        await page.get_by_role("button", name=re.compile("Connect")).click()
        await expect(page.get_by_text("Signed in as")).to_be_visible()
        await expect(page.locator("#nodes")).to_contain_text("No machine yet")
        await page.get_by_role("button", name="Generate node token").click()
        token = await token_on(page)
        async with NewAgent(gateway.ws_url) as agent:
            node_id = await agent.register(token, hostInfo={"hostname": "<b>rig</b>", "gpus": []})
            await expect(page.locator("#nodes")).to_contain_text("Online")
            # What a machine calls itself is text.
            await expect(page.locator("#nodes")).to_contain_text("<b>rig</b>")
            await expect(page.locator("#nodes")).to_contain_text(node_id[:8])
            job = await agent.of_type("job")
            await expect(page.locator("#jobs")).to_contain_text("Pending")
            await agent.begin(job)
            await expect(page.locator("#jobs")).to_contain_text("Running")
            await agent.result(job)
            await expect(page.locator("#jobs")).to_contain_text("Completed")
            row = {"name": "driver", "state": "fail", "measured": "none", "remedy": "Install it."}
            await agent.send(type="self_test", rows=[row])
            await expect(page.locator("#nodes")).to_contain_text("driver: None. Install it.")
        await expect(page.locator("#nodes")).to_contain_text("Offline")
        assert gateway.store.nodes.get(node_id).proven
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Solana wallet address")).to_be_visible()
        assert problems == []


async def test_a_wallet_refuses(gateway: Gateway) -> None:
    """The page says so, and works on with a pasted address."""
    async with chromium() as browser:
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        await page.add_init_script(WALLET.replace("KIND", "refusing"))
        await page.goto(f"{gateway.url}/app")
        await page.get_by_role("button", name="Connect wallet").click()
        await expect(page.get_by_role("status")).to_contain_text("The wallet has refused.")
        await page.get_by_label("Solana wallet address").fill(gateway.wallet)
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Generate node token").click()
        token = await token_on(page)
        await expect(page.locator("#token")).to_contain_text("held until this wallet has signed in")
        async with OldAgent(gateway.ws_url) as agent:
            await agent.register(token)
            await agent.do_job()
            await expect(page.locator("#jobs")).to_contain_text("Completed")


async def test_without_javascript(gateway: Gateway) -> None:
    """The same by reloading: address, token, tables."""
    async with chromium() as browser:
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        await page.goto(f"{gateway.url}/app")
        assert await page.get_by_role("button", name=re.compile("Connect")).count() == 0
        await page.get_by_label("Solana wallet address").fill(gateway.wallet)
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("button", name="Generate node token").click()
        token = await token_on(page)
        async with OldAgent(gateway.ws_url) as agent:
            await agent.register(token)
            job = await agent.do_job()
            await page.goto(f"{gateway.url}/app?wallet={gateway.wallet}")
            nodes, jobs = page.locator("#nodes"), page.locator("#jobs")
            await expect(nodes).to_contain_text("gpu-rig-01")
            await expect(nodes).to_contain_text("Online")
            await expect(jobs).to_contain_text(job["id"][:8])
            await expect(jobs).to_contain_text("Completed")


def test_what_the_page_is_made_of(gateway: Gateway) -> None:
    """No script but its own, no store of it anywhere, nothing of what a stranger wrote; wrong input is a sentence."""
    reply = gateway.http.get("/app", params={"wallet": gateway.wallet})
    assert reply.status_code == 200
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert reply.headers["Cache-Control"] == "no-store"
    assert "<script>" not in reply.text
    assert "style=" not in reply.text
    kinds = {"app.js": "javascript", "live.js": "javascript", "wallet.js": "javascript"}
    for name, kind in (kinds | {"style.css": "css"}).items():
        reply = gateway.http.get(f"/app/static/{name}")
        assert kind in reply.headers["Content-Type"]
        assert len(reply.content) < 9000
    for name in ("agent.py", "requirements.txt"):
        assert "websockets" in gateway.http.get(f"/app/python-host/{name}").text
    assert gateway.http.get("/app/python-host/__init__.py").status_code == 404
    assert gateway.http.get("/app/static/../routes.py").status_code == 404
    assert gateway.http.get("/app/static/routes.py").status_code == 404
    reply = gateway.http.get("/app", params={"wallet": "<script>alert(1)</script>"})
    assert reply.status_code == 400
    assert "base58 of 32 bytes" in reply.text
    assert "<script>alert" not in reply.text
    reply = gateway.http.post("/app/token", data={"wallet": "x"})
    assert reply.status_code == 400
    assert gateway.http.get("/", follow_redirects=False).headers["Location"] == "/app"
    reply = gateway.http.post("/app/token", headers={"Origin": "https://evil.example.com"})
    assert reply.status_code == 403


async def test_pages_that_are_open(gateway: Gateway) -> None:
    """Each is told at once what changed and nothing else; of one wallet twenty may be open."""
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=120) as http:
        at = f"/app/events?wallet={gateway.wallet}"
        async with http.stream("GET", at) as events, OldAgent(gateway.ws_url) as agent:
            assert events.headers["Content-Type"].startswith("text/event-stream")
            lines = events.aiter_lines()
            while "No machine yet" not in await anext(lines):
                pass
            node_id = await agent.register(gateway.token())
            while node_id[:8] not in (line := await anext(lines)):
                pass
            assert line.startswith("data: {")
            assert "No job yet" not in line
        held = [http.stream("GET", at) for _ in range(21)]
        codes = [(await one.__aenter__()).status_code for one in held]
        assert codes == [200] * 20 + [429]
        for one in held:
            await one.__aexit__(None, None, None)
        assert (await http.get("/app/events", params={"wallet": "x"})).status_code == 400


async def test_pages_of_one_address(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of however many wallets: they are counted with its sockets, until they are closed."""
    monkeypatch.setattr(limits, "MAX_SOCKETS", 3 / 1000)  # the gateway's are a thousandfold
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=120) as http:

        def page() -> contextlib.AbstractAsyncContextManager[httpx.Response]:
            wallet = wallets.encode(secrets.token_bytes(32))
            return http.stream("GET", f"/app/events?wallet={wallet}")

        async with OldAgent(gateway.ws_url), contextlib.AsyncExitStack() as held:
            lines = []  # one that is forgotten closes its page
            for _ in range(2):
                opened = await held.enter_async_context(page())
                assert opened.status_code == 200
                lines.append(opened.aiter_lines())
                await anext(lines[-1])
            async with page() as refused:
                assert refused.status_code == 429
                assert (
                    "of this network address are open already" in (await refused.aread()).decode()
                )

        async def is_closed() -> bool:
            async with page() as opened:
                return opened.status_code == 200

        await until(is_closed)
