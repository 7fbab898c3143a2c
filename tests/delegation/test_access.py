"""Customers, their tokens and the door: who is let in, and who is shut out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pocqueue.delegation.access import RedisFailures
from pocqueue.delegation.customers import MAIN, Customer, Customers, TokensFile
from pocqueue.errors import InvalidToken, SettingsError, TooManyFailures
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.sessions.reader import SessionReader
from pocqueue.rounds.store import Keys
from pocqueue.web.door import Access
from pocqueue.web.failure_limit import WINDOW_S, FailureLimit
from tests.support.waiting import Clock

TOKEN = "a-token-of-the-big-node"
CustomerAccess: TypeAlias = Access[Customer]


@pytest.fixture
def file(tmp_path: Path) -> TokensFile:
    """A file of customers that is not there yet, in a folder that is not either."""
    return TokensFile(tmp_path / "state" / "tokens.json")


# Customers


def test_a_file_has_digests_and_no_token(file: TokensFile) -> None:
    """Readable by its owner only."""
    token = file.add("alice", sessions=3, share=2.0)
    text = file.path.read_text()
    assert len(token) >= 40
    assert token not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    [customer] = json.loads(text)["customers"]
    assert customer["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert (customer["name"], customer["sessions"], customer["share"]) == ("alice", 3, 2.0)
    assert [known.name for known in file.read()] == ["alice"]
    # Nothing else stays but the lock.
    assert {path.name for path in file.path.parent.iterdir()} == {"tokens.json", "tokens.json.lock"}


def test_a_token_finds_its_customer(file: TokensFile) -> None:
    """As soon as it is added, and no longer than until it is revoked."""
    customers = Customers(TOKEN, file)
    token = file.add("alice")
    found, main = customers.find(token), customers.find(TOKEN)
    assert found is not None
    assert main is not None
    assert (found.name, main.name) == ("alice", MAIN)
    assert customers.find(token[:-1]) is None
    assert customers.find("\ud800") is None
    other = file.add("bob")
    file.revoke("alice")
    assert customers.find(token) is None
    assert customers.find(other) is not None


def test_limits_of_a_customer(file: TokensFile) -> None:
    """Its own, or that of all; never more than that of all."""
    file.add("few", sessions=3)
    file.add("many", sessions=100)
    file.add("any")
    limits = {customer.name: customer.max_sessions(10) for customer in file.read()}
    assert limits == {"few": 3, "many": 10, "any": 10}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "name is ''; allowed: 1 to 64 letters"),
        ({"name": "a b"}, "name is 'a b'; allowed: "),
        ({"name": "-x"}, "name is '-x'; allowed: "),
        ({"name": "main"}, "DELEGATION_AUTH_TOKEN"),
        ({"name": "taken"}, "pocqueue delegation token revoke taken"),
        ({"name": "x", "sessions": 0}, "sessions is 0; allowed: "),
        ({"name": "x", "share": 0.0}, "share is 0.0; allowed: "),
    ],
)
def test_a_customer_that_cannot_be(file: TokensFile, fields: dict[str, Any], said: str) -> None:
    """One sentence, and the file is as before."""
    file.add("taken")
    before = file.path.read_bytes()
    with pytest.raises(SettingsError) as caught:
        file.add(**fields)
    assert said in str(caught.value)
    assert file.path.read_bytes() == before


def test_who_has_no_token_cannot_lose_it(file: TokensFile) -> None:
    """The message names those who have one."""
    file.add("alice")
    with pytest.raises(SettingsError, match=r"name is 'bob', which has no token; .* alice"):
        file.revoke("bob")


def test_many_at_once_lose_no_customer(file: TokensFile) -> None:
    """A lock lets one change the file at a time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: file.add(f"c{i}"), range(24)))
    assert len(file.read()) == 24


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "customers": []}',
        '{"version":1,"customers":[{"name":"x"}]}',
    ],
)
def test_a_file_of_another_kind(file: TokensFile, content: str) -> None:
    """Names the file; it is neither used nor written over."""
    file.path.parent.mkdir()
    file.path.write_text(content)
    for call in (file.read, lambda: file.add("x"), lambda: Customers(TOKEN, file)):
        with pytest.raises(SettingsError, match=r"tokens\.json"):
            call()
    assert file.path.read_text() == content


def test_a_running_service_outlives_a_bad_edit(
    file: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps whom it knows, says so once, and takes the file up again when it is mended."""
    token = file.add("alice")
    customers = Customers(TOKEN, file)
    good = file.path.read_bytes()
    file.path.write_text("half a file")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert customers.find(token) is not None
    assert caplog.text.count("DELEGATION keeps the customers that it knows") == 1
    file.path.write_bytes(good)
    file.revoke("alice")
    assert customers.find(token) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="DELEGATION_TOKENS_FILE"):
        TokensFile(tmp_path / "file" / "tokens.json").add("alice")


# The door


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@asynccontextmanager
async def process(
    backend: Backend, file: TokensFile, clock: Clock
) -> AsyncIterator[CustomerAccess]:
    """The door of one process of a service: it shuts after two wrong tokens."""
    async with SessionReader(backend.url) as reader:
        access: CustomerAccess = Access(Customers(TOKEN, file).find, FailureLimit(2, clock))
        access.limit.shared = RedisFailures(reader.client, reader.url).count
        yield access


@pytest.fixture
async def access(backend: Backend, file: TokensFile, clock: Clock) -> AsyncIterator[CustomerAccess]:
    """The door of a process."""
    async with process(backend, file, clock) as access:
        yield access


async def guess(access: CustomerAccess, address: str) -> type[Exception]:
    """Try a wrong token; return what it is answered with."""
    with pytest.raises((InvalidToken, TooManyFailures)) as caught:
        await access.admit(address, "a-wrong-token")
    assert "a-wrong-token" not in str(caught.value)
    return caught.type


async def test_guesses_are_told_to_wait(
    access: CustomerAccess, backend: Backend, clock: Clock
) -> None:
    """Those of one address, for what is left of its minute; a right token gets in all the while."""
    assert [await guess(access, "192.0.2.1") for _ in range(3)] == [
        InvalidToken,
        InvalidToken,
        TooManyFailures,
    ]
    with pytest.raises(TooManyFailures) as caught:
        await access.admit("192.0.2.1", "a-wrong-token")
    assert 0 < caught.value.retry_after_s <= WINDOW_S
    for address in ("192.0.2.1", "192.0.2.2"):
        assert (await access.admit(address, TOKEN)).name == MAIN
    assert await guess(access, "192.0.2.2") is InvalidToken
    assert backend.client.hget(Keys.METRICS, "auth_failures") == "4"
    left_ms = backend.client.pttl(f"{Keys.AUTH_FAILURES}:192.0.2.1")
    assert 0 < left_ms <= 1000 * WINDOW_S
    clock.now_s += WINDOW_S
    backend.client.delete(f"{Keys.AUTH_FAILURES}:192.0.2.1")
    assert await guess(access, "192.0.2.1") is InvalidToken


async def test_a_burst_of_guesses_is_counted_as_it_came(access: CustomerAccess) -> None:
    """However many wait for Redis; who has a right token does not wait for them."""
    burst = await asyncio.gather(*(guess(access, "192.0.2.1") for _ in range(200)))
    assert burst.count(InvalidToken) <= 2
    assert burst.count(TooManyFailures) >= 198
    for address in ("192.0.2.1", "192.0.2.2"):
        assert (await access.admit(address, TOKEN)).name == MAIN


async def test_all_processes_count_together(
    access: CustomerAccess, backend: Backend, file: TokensFile
) -> None:
    """Two wrong ones here and one there are three."""
    async with process(backend, file, Clock()) as other:
        await guess(access, "192.0.2.1")
        await guess(access, "192.0.2.1")
        assert await guess(other, "192.0.2.1") is TooManyFailures


async def test_no_token_is_no_guess(access: CustomerAccess) -> None:
    """However often."""
    for _ in range(5):
        with pytest.raises(InvalidToken, match="there is none"):
            await access.admit("192.0.2.1", None)
    assert (await access.admit("192.0.2.1", TOKEN)).name == MAIN
