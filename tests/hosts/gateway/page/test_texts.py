"""What people look for who know the older page: its words, and those of its routes."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.hosts.agents import OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.gateway.page.open_page import open_page
from tests.hosts.parts import new_wallet
from tests.support.browser import chromium

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

#: Seed 002: the title of the section, the button, both tables with their columns, and what is in them.
TEXTS = (
    *("GPU Hosts (Beta)", "Connect your Solana wallet", "Generate node token"),
    *("My GPU Nodes", "Node ID", "Hostname", "GPU", "Status", "Last heartbeat", "Earned (HYPER)"),
    *("gpu-rig-01", "NVIDIA RTX 4090", "24 GiB", "Online"),
    *("Recent Jobs", "Job ID", "Type", "Node", "Duration", "test", "Completed"),
)
#: WIRE section 4: sentences of the routes that a person with a browser meets.
REFUSALS: tuple[tuple[str, dict[str, str], int, str], ...] = (
    ("/app/token", {}, 400, "wallet address is required"),
    ("/app/nodes/none/drain", {}, 401, "signed in"),
)


async def test_the_words_of_the_older_page(gateway: Gateway) -> None:
    """Word for word, for who pastes an address: the titles, the columns, the commands, a machine and its job."""
    wallet = new_wallet()
    async with chromium() as browser, OldAgent(gateway.ws_url) as agent:
        await agent.register(gateway.token(wallet))
        await agent.do_job()
        async with open_page(browser, gateway, wallet, signed_in=False) as page:
            await expect(page.locator("#jobs")).to_contain_text("Completed")
            shown = await page.locator("main").inner_text()
            hidden = await page.locator("#connect").text_content() or ""
            missing = [text for text in TEXTS if text not in shown + hidden]
            assert missing == []
            await page.get_by_role("button", name="Generate node token").click()
            commands = page.locator("#token code")
            await expect(commands).to_have_count(2)
            for at, program in enumerate(("pocqueue agent", "python3 agent.py")):
                await expect(commands.nth(at)).to_have_text(
                    re.compile(
                        rf"{program} --endpoint ws://127\.0\.0\.1:[0-9]+ --token [0-9a-f-]{{36}}"
                    )
                )
            await expect(page.locator("#token")).to_contain_text("pip install -r requirements.txt")
            await page.get_by_role("button", name="Copy").first.click()
            await expect(page.locator(".copy").first).to_have_text(re.compile("Copied|Selected"))


@pytest.mark.parametrize(("path", "form", "status", "said"), REFUSALS)
def test_refusals_are_on_the_page(
    gateway: Gateway, path: str, form: dict[str, str], status: int, said: str
) -> None:
    """In the words of the routes, for a browser without JavaScript."""
    reply = gateway.http.post(path, data=form)
    assert reply.status_code == status
    assert said in reply.text
    assert "<!doctype html>" in reply.text
