"""A gateway's process: its ports, its certificate, how much it holds, and which worker it is."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect

from pocqueue.errors import PocqueueError, SettingsError
from pocqueue.hosts.errors import DatabaseUnfit
from pocqueue.hosts.gateway import app
from pocqueue.hosts.gateway.facts import vram_mib
from pocqueue.hosts.gateway.limits import MESSAGES_BURST, MESSAGES_PER_S, MessageBudget
from pocqueue.hosts.gateway.service import check_service
from pocqueue.settings import HostsSettings, Settings
from tests.hosts.agents import OldAgent
from tests.hosts.gateway.conftest import Gateway
from tests.support.tls import make_certificate
from tests.support.waiting import Clock
from workers.hosts import relay_of

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_a_full_gateway(
    make: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes then is told to try later, and those who are there stay."""
    monkeypatch.setattr(app, "max_sockets", lambda: 1)
    gateway = make()
    token = gateway.token()
    async with OldAgent(gateway.ws_url) as first:
        node_id = await first.register(token)
        async with OldAgent(gateway.ws_url) as second:
            assert await second.close_code() == 1013
        assert await first.ask(type="heartbeat", nodeId=node_id) == {"type": "ack"}


async def test_over_tls(make: Callable[..., Gateway], tmp_path: Path) -> None:
    """https and wss, on both ports; the session's cookie is for TLS alone."""
    cert, key = make_certificate(tmp_path)
    gateway = make(tls_cert=cert, tls_key=key)
    trusted = ssl.create_default_context(cafile=str(cert))
    url = gateway.url.replace("http://", "https://")
    async with httpx.AsyncClient(verify=trusted, trust_env=False, timeout=120) as http:
        assert (await http.get(f"{url}/health")).json()["status"] == "ok"
        assert "; Secure" in (await http.delete(f"{url}/api/session")).headers["Set-Cookie"]
    for at in (gateway.ws_url, gateway.url.replace("http", "ws")):
        async with connect(at.replace("ws://", "wss://"), ssl=trusted, proxy=None) as ws:
            await ws.send('{"type": "register"}')
            assert json.loads(await ws.recv())["message"] == "Token is required"


def test_what_keeps_it_from_starting(database_url: str, tmp_path: Path) -> None:
    """Is one sentence that names the setting."""
    settings = Settings(state_dir=tmp_path)
    own = {"database_url": SecretStr(database_url)}
    check_service(settings, HostsSettings(**own))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"CORS_ORIGINS has 'app\.example\.com'"):
        check_service(settings, HostsSettings(**own, cors_origins="app.example.com"))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="--tls-cert is set and --tls-key is not"):
        check_service(settings, HostsSettings(**own, tls_cert=tmp_path / "cert"))  # type: ignore[arg-type]
    (tmp_path / "no-folder").write_text("")
    other = SecretStr(f"sqlite:///{tmp_path}/no-folder/hosts.sqlite3")
    with pytest.raises(DatabaseUnfit, match="no-folder"):
        check_service(settings, HostsSettings(database_url=other))


def test_settings_by_the_names_of_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PORT, WS_PORT and CORS_ORIGIN count where ours are not set; a token that can be guessed is none."""
    for name in ("PORT", "WS_PORT"):
        monkeypatch.setenv(name, "4001")
    monkeypatch.setenv("CORS_ORIGIN", "https://app.example.com")
    monkeypatch.setenv("POCQUEUE_HOSTS_WS_PORT", "4002")
    hosts = HostsSettings.load()
    assert (hosts.port, hosts.ws_port) == (4001, 4002)
    assert hosts.cors_origins == "https://app.example.com"
    monkeypatch.setenv("PORT", "many")
    with pytest.raises(SettingsError):
        HostsSettings.load()
    monkeypatch.setenv("PORT", "4002")
    with pytest.raises(
        SettingsError, match="POCQUEUE_HOSTS_WS_PORT cannot be '4002': that is the first"
    ):
        HostsSettings.load()
    monkeypatch.setenv("PORT", "3002")
    monkeypatch.delenv("WS_PORT")
    monkeypatch.delenv("POCQUEUE_HOSTS_WS_PORT")
    with pytest.raises(SettingsError, match="that is the first"):
        HostsSettings.load()
    monkeypatch.setenv("PORT", "4001")
    monkeypatch.setenv("POCQUEUE_HOSTS_ADMIN_TOKEN", "short")
    with pytest.raises(SettingsError, match="16 or more") as refused:
        HostsSettings.load()
    assert "short" not in str(refused.value)


def test_which_worker_is_a_gateway(database_url: str) -> None:
    """One that has its queue, and beside it the one that gateways share."""
    assert relay_of(["gpu0"]) is None
    assert relay_of(["io"]) is None
    assert relay_of(["relay.here", "hosts"]) == "here"
    assert relay_of(["hosts", "relay.a.b"]) == "a.b"
    for wrong in (["relay.a", "relay.b"], ["relay.a", "io"], ["relay.a", "gpu0", "hosts"]):
        with pytest.raises(PocqueueError, match="serves its own queue and hosts"):
            relay_of(wrong)


def test_memory_as_people_write_it(database_url: str) -> None:
    """In gigabytes or mebibytes; anything else is not known."""
    found = {"24GB": 24576, "24 GiB": 24576, "24564MiB": 24564, "1.5 g": 1536, "80G": 81920}
    assert {text: vram_mib(text) for text in found} == found
    assert [vram_mib(text) for text in ("", "lots", "-1GB", "1" * 50, "24", "unknown")] == [
        None
    ] * 6


def test_messages_fill_up_again(database_url: str) -> None:
    """A burst, then as many as a machine has reason to send."""
    clock = Clock()
    budget = MessageBudget(clock)
    assert sum(budget.take() for _ in range(1000)) == MESSAGES_BURST
    clock.now_s += 1
    assert sum(budget.take() for _ in range(1000)) == MESSAGES_PER_S
    clock.now_s += 3600
    assert sum(budget.take() for _ in range(1000)) == MESSAGES_BURST
