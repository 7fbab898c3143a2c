"""Makes docs/hosts.png: the page after a machine has joined and done its test job.

`python -m tests.hosts.gateway.page.picture docs/hosts.png` (`make picture`) starts `pocqueue hosts`' gateway, signs a
wallet in, runs the small agent with a real `sleep 5`, and takes the picture in Chromium.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import expect
from pydantic import SecretStr

from pocqueue.hosts.gateway.timings import GatewayTimings
from pocqueue.hosts.store.database import file_url
from pocqueue.settings import HostsSettings
from tests.hosts.gateway.conftest import Gateway
from tests.hosts.gateway.page.open_page import open_page
from tests.hosts.parts import new_wallet
from tests.support.browser import PATIENCE_MS, chromium

_AGENT = Path(__file__).parents[4] / "pocqueue" / "hosts" / "python_host" / "agent.py"
_MAX_BYTES = 150_000


async def _take(target: Path, state_dir: Path) -> None:
    hosts = HostsSettings(
        host="127.0.0.1",
        port=0,
        ws_port=0,
        database_url=SecretStr(file_url(state_dir / "hosts.sqlite3")),
    )
    gateway = Gateway(state_dir, hosts, GatewayTimings(), 1.0)
    wallet = new_wallet()
    token = gateway.store.owners.issue_token(wallet, proven=True).token
    command = (sys.executable, str(_AGENT), "--endpoint", gateway.ws_url, "--token", token)
    try:
        async with chromium() as browser:
            agent = await asyncio.create_subprocess_exec(*command)
            try:
                size = {"width": 1200, "height": 940}
                async with open_page(
                    browser, gateway, wallet, viewport=size, color_scheme="light"
                ) as page:
                    await expect(page.locator("#nodes")).to_contain_text("Online")
                    jobs = page.locator("#jobs")
                    await expect(jobs).to_contain_text("Completed", timeout=PATIENCE_MS)
                    await expect(jobs).to_contain_text("5 s")
                    await expect(jobs).to_contain_text("0.05")
                    await expect(page.locator("#nodes")).to_contain_text("Online")
                    await page.screenshot(path=target, full_page=True)
            finally:
                agent.terminate()
                await agent.wait()
    finally:
        gateway.end()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(sys.argv[1])
        asyncio.run(_take(picture, Path(folder)))
        if (size_bytes := picture.stat().st_size) > _MAX_BYTES:
            sys.exit(f"{picture} has {size_bytes} bytes; allowed: {_MAX_BYTES}.")
