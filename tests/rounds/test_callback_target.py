"""Callback targets: what is public, what is refused before a connection, and what at its socket."""

from __future__ import annotations

import ipaddress
import socket
from functools import partial
from typing import Any

import pytest

from pocqueue.errors import InvalidRound
from pocqueue.poc.callback import CallbackClient, PostOutcome
from pocqueue.rounds import callback_target
from pocqueue.rounds.callback_target import check_url, checked_connector, is_public
from tests.support.callback_receiver import receiving

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - the case under test
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",  # carrier-grade NAT
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",  # metadata of cloud machines
    "172.16.0.1",
    "192.168.1.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2001:0:808:808::f5ff:fffe",  # Teredo of client 10.0.0.1
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
#: Ways to write a host that the C library or the URL parser turns into a forbidden address.
DISGUISED = [
    "2130706433",
    "0x7f.1",
    "0x7f000001",
    "127.1",
    "017700000001",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """In IPv4, in IPv6, and in IPv6 around IPv4."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_other_addresses_are_not(address: str) -> None:
    """Whatever IPv6 address an IPv4 address hides in."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [*NOT_PUBLIC, *DISGUISED])
def test_a_literal_that_is_not_public_is_refused_in_the_url(address: str) -> None:
    """Before anything is sent, and however it is written; with the setting it is let through."""
    host = f"[{address}]" if ":" in address else address
    host = host.replace("%", "%25")
    url = f"http://{host}:8080/hook?secret=hunter2"
    with pytest.raises(InvalidRound, match=r"callback_url is .*POCQUEUE_CALLBACK_PRIVATE=1") as got:
        check_url(url, allow_private=False)
    assert "hunter2" not in str(got.value)
    check_url(url, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook",
        "http://8.8.8.8:80/hook",
        "http://[2606:4700:4700::1111]/hook",
        "http://localhost.example.com",
        "http://10.example.com/",
    ],
)
def test_names_and_public_literals_are_let_through(url: str) -> None:
    """What a name leads to is seen when it is resolved."""
    check_url(url, allow_private=False)


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com",
        "file:///etc/passwd",
        "gopher://example.com",
        "http://",
        "http:///hook",
        "http://me:hunter2@example.com",
        "http://me@example.com",
        "http://@127.0.0.1@/",
        "http://example.com:99999/",
        "http://[::1/",
    ],
)
def test_what_is_no_callback_url_is_refused_always(url: str, allow_private: bool) -> None:
    """Other schemes, user names, no host; passwords are not repeated."""
    with pytest.raises(InvalidRound, match="callback_url") as caught:
        check_url(url, allow_private=allow_private)
    assert "hunter2" not in str(caught.value)


async def _post(url: str, *, allow_private: bool) -> tuple[PostOutcome, str]:
    """Post once; return what came of it and why."""
    async with CallbackClient(connector=partial(checked_connector, allow_private)) as client:
        result = await client.post(url, "generated", "{}")
        return result.outcome, result.reason


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"]
)
async def test_no_connection_is_made_to_what_is_not_public(
    host: str,
) -> None:
    """A receiver that listens gets nothing; the reason says which setting would allow it."""
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        answer, why = await _post(url, allow_private=False)
        assert receiver.received == []
    assert answer is PostOutcome.FORBIDDEN
    assert "POCQUEUE_CALLBACK_PRIVATE=1" in why


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_setting_allows_it(host: str) -> None:
    """The same receiver gets it."""
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        assert await _post(url, allow_private=True) == (PostOutcome.DELIVERED, "")
        assert len(receiver.accepted) == 1


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be connected to unchecked, and it would look the name up by itself."""
    async with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        answer, _ = await _post("http://169.254.169.254/latest", allow_private=False)
        assert answer is PostOutcome.FORBIDDEN
        assert proxy.received == []


class Names:
    """A name server of the test's own: each lookup of callback.test has the next answer."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.lookups = 0

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host != "callback.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        answer = self.answers[min(self.lookups, len(self.answers) - 1)]
        self.lookups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in answer]


async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it resolves to, not by what it is called."""
    names = Names(["10.1.2.3", "169.254.169.254"])
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    answer, why = await _post("http://callback.test/hook", allow_private=False)
    assert answer is PostOutcome.FORBIDDEN
    assert why.startswith("callback_url leads to callback.test, which is no public address; ")


async def test_the_address_that_was_judged_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name with two faces: one lookup a connection, and of its answers the public ones only.

    The tests have no public receiver, so 127.0.0.1 plays one, and the rest of the world does not.
    """
    monkeypatch.setattr(callback_target, "is_public", lambda ip: str(ip) == "127.0.0.1")
    names = Names(["127.0.0.2", "127.0.0.1"], ["127.0.0.2"])
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "callback.test")
        assert await _post(url, allow_private=False) == (PostOutcome.DELIVERED, "")
        assert names.lookups == 1
        answer, _ = await _post(url, allow_private=False)
        assert answer is PostOutcome.FORBIDDEN
        assert len(receiver.received) == 1


async def test_a_name_that_is_not_known_is_tried_again() -> None:
    """Name servers fail now and then; nothing is known about the address then."""
    answer, why = await _post("http://nowhere.invalid/hook", allow_private=False)
    assert (answer, why) == (PostOutcome.RETRY, "no answer (its name is not found)")
