"""What an owner decides on the page: by mouse, by keyboard, and without JavaScript."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Locator, Page, expect

from pocqueue.hosts.errors import TokenRefused
from tests.hosts.agents import NewAgent
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.gateway.page.open_page import open_page
from tests.hosts.parts import facts, gpus, joined, new_wallet, running, sleep
from tests.support.browser import chromium
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def row_of(page: Page, node_id: str) -> Locator:
    """Return the row of a node."""
    return page.locator(f'#nodes > tbody[data-key="{node_id}"]')


async def focused(page: Page) -> str:
    """Return what the keyboard is at."""
    return str(await page.evaluate("document.activeElement.innerText"))


async def test_the_keyboard_moves_with_a_row(gateway: Gateway) -> None:
    """What is to mend is first: a row with which something goes wrong moves before those that are well."""
    wallet = new_wallet()
    held = joined(gateway.store, wallet=wallet, proven=False)
    well = joined(gateway.store, wallet=wallet)
    async with chromium() as browser, open_page(browser, gateway, wallet) as page:
        rows = page.locator("#nodes > tbody")
        await expect(rows.first).to_have_attribute("data-key", held.id)
        await row_of(page, well.id).locator("summary").focus()
        gateway.store.nodes.adopt(held.id, actor=wallet, wallet=wallet)
        gateway.store.nodes.set_state(well.id, "draining", actor="admin")
        gateway.service.hub.changes.tell(wallet)
        await expect(rows.first).to_have_attribute("data-key", well.id)
        assert (await focused(page)).startswith("Manage")
        assert await row_of(page, well.id).evaluate("(row) => row.contains(document.activeElement)")


async def test_by_keyboard(gateway: Gateway) -> None:
    """Drained, resumed, adopted, revoked, each shown by itself; the keyboard stays where it was."""
    wallet = new_wallet()
    held = joined(gateway.store, wallet=wallet, proven=False, hostname="held-rig")
    gateway.store.ledger.correct(held.id, 50_000, "its test job")
    async with (
        chromium() as browser,
        NewAgent(gateway.ws_url) as agent,
    ):
        token = gateway.store.owners.issue_token(wallet, proven=True).token
        node_id = await agent.register(token)
        async with open_page(browser, gateway, wallet) as page:
            row = row_of(page, node_id)
            await row.get_by_text("Manage").focus()
            await page.keyboard.press("Enter")
            await page.keyboard.press("Tab")
            assert await focused(page) == "Drain"
            await page.keyboard.press("Enter")
            await expect(row.get_by_role("button", name="Resume")).to_be_visible()
            await expect(row).to_contain_text("You have drained it")
            await expect(page.get_by_role("status")).to_contain_text("gets nothing new")
            assert (await agent.of_type("drain"))["type"] == "drain"
            assert (await focused(page)).startswith("Manage")
            await page.keyboard.press("Tab")
            assert await focused(page) == "Resume"
            await page.keyboard.press("Space")
            await expect(row.get_by_role("button", name="Drain")).to_be_visible()
            assert gateway.store.nodes.get(node_id).state == "active"
            await page.keyboard.press("Tab")
            await page.keyboard.press("Tab")
            assert await focused(page) == "New key"
            await page.keyboard.press("Enter")
            assert (await agent.of_type("rotate_key"))["type"] == "rotate_key"
            await expect(page.get_by_role("status")).to_contain_text("a new key")
            await page.keyboard.press("Escape")
            await expect(row.get_by_role("button", name="Drain")).to_be_hidden()

            other = row_of(page, held.id)
            await expect(other).to_contain_text("what it earns is held")
            await expect(page.locator("#earnings")).to_contain_text("Held")
            await other.locator("summary").click()
            await other.get_by_role("button", name="Adopt").click()
            await expect(other).not_to_contain_text("what it earns is held")
            await expect(page.locator("#earnings")).to_contain_text("To be paid")
            await expect(page.locator("#earnings")).not_to_contain_text("Held")
            assert gateway.store.ledger.balance(wallet).payable == 50_000

            await row.get_by_text("Manage").click()
            await row.get_by_role("button", name="Revoke for good").click()
            await expect(row).to_have_count(0)
            assert gateway.store.nodes.get(node_id).state == "revoked"


async def test_what_an_admin_has_drained(gateway: Gateway) -> None:
    """Its owner is told so, and that he cannot take it back; who tries is told, too."""
    wallet = new_wallet()
    node = joined(gateway.store, wallet=wallet)
    async with chromium() as browser, open_page(browser, gateway, wallet) as page:
        row = row_of(page, node.id)
        await row.get_by_text("Manage").click()
        await expect(row.get_by_role("button", name="Drain")).to_be_visible()
        assert gateway.admin("POST", f"/api/nodes/{node.id}/drain").status_code == 200
        await expect(row).to_contain_text("The operator of this server has drained it")
        await expect(row.get_by_role("button", name="Drain")).to_have_count(0)
        await expect(row.get_by_role("button", name="Resume")).to_have_count(0)
        # A page that was open before still has the button.
        await row.locator('form[action$="/revoke"]').evaluate(
            "(form) => { form.action = form.action.replace('revoke', 'resume'); }"
        )
        await row.get_by_role("button", name="Revoke for good").click()
        await expect(page.get_by_role("status")).to_contain_text("Not done: The operator")
        assert gateway.store.nodes.get(node.id).drained_by == "admin"


async def test_tokens(gateway: Gateway) -> None:
    """A token that waits is listed and can be revoked; nothing of it is shown again."""
    wallet = new_wallet()
    joined(gateway.store, wallet=wallet)
    async with chromium() as browser, open_page(browser, gateway, wallet) as page:
        tokens = page.locator("#tokens")
        await expect(tokens).to_contain_text("None.")
        await page.get_by_role("button", name="Generate node token").click()
        code = await page.locator("#token code").first.inner_text()
        found = re.search(r"--token (\S+)", code)
        assert found is not None
        await expect(tokens).to_contain_text("good until")
        assert found[1] not in await tokens.inner_html()
        await tokens.get_by_role("button", name="Revoke").click()
        await expect(tokens).to_contain_text("None.")
        await expect(page.get_by_role("status")).to_contain_text("refused")
        with pytest.raises(TokenRefused, match="Invalid token"):
            gateway.store.nodes.register(found[1], facts(), address="")


async def test_what_is_known_of_each_gpu(gateway: Gateway) -> None:
    """Which job holds it, how busy it was, why it is out and what to do; nothing of that for others."""
    wallet = new_wallet()
    node = joined(gateway.store, wallet=wallet, gpus=gpus(2))
    job = gateway.store.jobs.submit(sleep(600, only_node=node.id, gpus=1))
    turn = running(gateway.store, job.id)
    [busy] = turn.gpu_uuids
    [broken] = {gpu.uuid for gpu in node.gpus} - {busy}
    remedy = {"measured": "uncorrected errors: 3", "remedy": "replace the card"}
    row = {"name": "gpu_memory", "state": "fail", "gpu": broken, **remedy}
    gateway.store.health.set_self_test(node.id, [row], {broken: "gpu_memory: 3"})
    gateway.store.health.add_loads({(node.id, busy): 42.0})
    async with chromium() as browser:
        async with open_page(browser, gateway, wallet) as page:
            shown = row_of(page, node.id)
            number = next(n for n, gpu in enumerate(node.gpus) if gpu.uuid == broken)
            lines = shown.locator(".gpus > li")
            await expect(lines.nth(1 - number)).to_contain_text(f"at {job.id[:8]}")
            await expect(lines.nth(number)).to_contain_text("out gpu_memory: 3")
            await expect(shown).to_contain_text(
                f"GPU {number}, gpu_memory: Uncorrected errors: 3. Replace the card."
            )
            await expect(shown.get_by_role("img")).to_have_accessible_name(
                f"Load of GPU {1 - number} in the last day, 42 per cent now"
            )
            gateway.store.health.set_self_test(node.id, [], {})
            gateway.service.hub.changes.tell(wallet)
            await expect(shown).not_to_contain_text("Replace the card")
        async with open_page(browser, gateway, wallet, signed_in=False) as page:
            await expect(row_of(page, node.id)).to_contain_text("Busy")
            await expect(page.get_by_role("img")).to_have_count(0)
            await expect(page.get_by_role("button", name="Drain")).to_have_count(0)
            assert await page.locator("#earnings, #tokens").count() == 0


async def test_without_javascript(gateway: Gateway) -> None:
    """The same buttons, by reloading; a refusal is a sentence on the page."""
    wallet = new_wallet()
    node = joined(gateway.store, wallet=wallet, proven=False)
    gateway.store.owners.issue_token(wallet, proven=True)
    async with chromium() as browser:
        async with open_page(browser, gateway, wallet, java_script_enabled=False) as page:
            for name, words in (
                ("Adopt", "Drain"),
                ("Drain", "You have drained it"),
                ("Resume", "Nothing to mend"),
            ):
                await page.locator("#nodes summary").click()
                await page.get_by_role("button", name=name, exact=True).click()
                await expect(page.locator("main")).to_contain_text(words)
            await page.get_by_role("button", name="Revoke the token").click()
            await expect(page.locator("#tokens")).to_contain_text("None.")
            await page.locator("#nodes summary").click()
            gateway.admin("POST", f"/api/nodes/{node.id}/revoke")
            await page.get_by_role("button", name="Drain").click()
            await expect(page.get_by_role("status")).to_contain_text("Node not found")
        async with open_page(
            browser, gateway, wallet, signed_in=False, java_script_enabled=False
        ) as page:
            await expect(page.locator("main")).to_contain_text("shown to the wallet's owner")
    await until(lambda: gateway.store.tokens.open(wallet) == [])
