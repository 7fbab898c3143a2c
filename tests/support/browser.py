"""A real Chromium, and a wallet for it with a real key."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import AsyncIterator
from importlib import resources

import pytest
from playwright.async_api import Browser, Page, async_playwright

_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
#: Milliseconds; the machine may be busy.
PATIENCE_MS = 300_000


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Have a browser; without one the test is skipped on a laptop, and fails in CI."""
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: apt-get install chromium.")
        pytest.skip("This takes Chromium: apt-get install chromium.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=list(_ARGUMENTS), timeout=PATIENCE_MS
        )
        try:
            yield browser
        finally:
            await browser.close()


@functools.cache
def _axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


async def axe(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page: rule, place and why."""
    # Evaluated, as the page's policy runs no script that is put into it.
    await page.evaluate(_axe())
    found = await page.evaluate("axe.run(document)")
    return [
        f"{rule['id']}: {place['html'][:200]}: {place['failureSummary']}"
        for rule in found["violations"]
        for place in rule["nodes"]
    ]


#: Puts a wallet into each page, before its scripts run. `KIND` is ``injected``, ``standard`` or ``refusing``.
WALLET = r"""
(() => {
  const kind = "KIND";
  const letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
  const base58 = (bytes) => {
    let number = 0n, text = "";
    for (const byte of bytes) number = number * 256n + BigInt(byte);
    while (number > 0n) { text = letters[Number(number % 58n)] + text; number /= 58n; }
    for (const byte of bytes) { if (byte) break; text = "1" + text; }
    return text;
  };
  const made = crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"]).then(async (key) => {
    const raw = new Uint8Array(await crypto.subtle.exportKey("raw", key.publicKey));
    return { key, raw, address: base58(raw) };
  });
  const sign = async (bytes) => {
    if (kind === "refusing") throw Object.assign(new Error("User rejected"), { code: 4001 });
    return new Uint8Array(await crypto.subtle.sign("Ed25519", (await made).key.privateKey, bytes));
  };
  if (kind === "standard") {
    const wallet = {
      version: "1.0.0", name: "Test Wallet", chains: ["solana:mainnet"], accounts: [],
      features: {
        "standard:connect": { version: "1.0.0", connect: async () => {
          const { address, raw } = await made;
          return { accounts: [{ address, publicKey: raw, chains: ["solana:mainnet"], features: [] }] };
        } },
        "solana:signMessage": { version: "1.0.0", signMessage: async ({ message }) =>
          [{ signedMessage: message, signature: await sign(message) }] },
      },
    };
    const offer = ({ register }) => register(wallet);
    window.addEventListener("wallet-standard:app-ready", (event) => offer(event.detail));
    window.dispatchEvent(new CustomEvent("wallet-standard:register-wallet", { detail: offer }));
  } else {
    window.solana = {
      connect: async () => ({ publicKey: { toString: () => address, } }),
      signMessage: async (bytes) => ({ signature: await sign(bytes) }),
    };
    let address = "";
    const connect = window.solana.connect;
    window.solana.connect = async () => { address = (await made).address; return connect(); };
  }
})();
"""
