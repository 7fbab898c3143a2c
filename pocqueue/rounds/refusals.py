"""What a Redis server says no to: which of it passes by itself, and what a person has to change.

`StoreUnavailable`, and `StoreReadOnly` among it, passes: whoever runs for long waits, for as long as it lasts.
The other `StoreError`s want an operator: a process that meets one when it starts ends with that sentence.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import NoPermissionError

from pocqueue.errors import (
    StoreError,
    StoreForbidden,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnfit,
)

logger = logging.getLogger(__name__)

OLDEST_REDIS = (6, 2)
#: Set and gone at once, to see whether the server takes writes.
PROBE_KEY = "pocqueue:2:probe"

#: Why a server that answers takes no writes for now, by the code of its refusal.
NO_WRITES = {
    "OOM": "free its memory or raise maxmemory",
    "MISCONF": "make room on its disk",
    "READONLY": "it is a replica, which passes when a failover is over; else name the primary in "
    "POCQUEUE_REDIS_URL",
    "NOREPLICAS": "start its replicas, or lower min-replicas-to-write",
}
#: Codes of a server that starts, fails over or is busy for now.
NOT_NOW = ("LOADING", "MASTERDOWN", "UNBLOCKED", "CLUSTERDOWN", "TRYAGAIN", "BUSY")
#: What a client raises while sentinels have not agreed on a primary yet.
NO_PRIMARY = (redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)
FORBIDDEN = ("NOPERM", "NOAUTH", "WRONGPASS")

# A refusal within a script has its code somewhere in the text, depending on the version.
_CODE = re.compile(rf"\b({'|'.join((*FORBIDDEN, *NO_WRITES, *NOT_NOW))})\b")
# The client takes the code off the text of those that it has a class for.
_CLASSES = {
    redis.OutOfMemoryError: "OOM",
    redis.ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",  # MASTERDOWN too
    redis.exceptions.TryAgainError: "TRYAGAIN",
}


def _refusal(exc: redis.RedisError) -> tuple[str, str]:
    """Return the code of a refusal among those that mean something here, or none, and what it says."""
    text = str(exc).rstrip(".") or type(exc).__name__
    if isinstance(exc, NO_PRIMARY):
        # Theirs describes every connection to each of them.
        return "", "no sentinel that answers knows a primary of that name"
    for kind, code in _CLASSES.items():
        if isinstance(exc, kind):
            return code, text
    if found := _CODE.search(text):
        # Servers go on at length about what to look at.
        return found[0], text[found.start() :].partition(". ")[0]
    return "", text


def store_error(exc: redis.RedisError, url: str) -> StoreError:
    """Return our own error, with a sentence for the operator, for one of the client library.

    Args:
        url: of the server.
    """
    code, reason = _refusal(exc)
    server = f"Redis at {shown_url(url)}"
    if isinstance(exc, redis.AuthenticationError) or code in {"NOAUTH", "WRONGPASS"}:
        return StoreForbidden(
            f"{server} wants another user or password: mend POCQUEUE_REDIS_URL "
            "(redis://user:password@host:6379/0)."
        )
    if code == "NOPERM":
        return StoreForbidden(
            f"{server} does not let this user do what pocqueue has to ({reason}): give it the rights that "
            "docs/operating.md lists, or name another user in POCQUEUE_REDIS_URL."
        )
    if code in NO_WRITES:
        return StoreReadOnly(
            f"{server} takes no more writes ({reason}): {NO_WRITES[code]}. Running rounds go on when it does "
            "again."
        )
    if code in NOT_NOW or isinstance(exc, redis.ConnectionError | redis.TimeoutError):
        return StoreUnavailable(
            f"{server} does not answer ({reason}): check that it runs and that POCQUEUE_REDIS_URL is right."
        )
    return StoreError(f"{server} refused a command: {reason}.")


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Raise our own errors for what Redis or the way to it can do wrong."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as exc:
        error = store_error(exc, url)
        # Of a wrong password the client's text may repeat a part.
        raise error from (None if isinstance(error, StoreForbidden) else exc)


def check_version(client: redis.Redis, url: str) -> None:
    """Refuse a server that is too old.

    Raises:
        StoreUnfit: it is.
        StoreError: it cannot be asked.
    """
    with store_errors(url):
        version = _version(client)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST_REDIS:
        raise StoreUnfit(
            f"Redis at {shown_url(url)} is version {version}; 6.2 or newer is needed. "
            "Upgrade it, or unset POCQUEUE_REDIS_URL to use the bundled one."
        )


def check_eviction(
    client: redis.Redis, url: str, *, warn: bool = False, refuse: bool = True
) -> None:
    """Refuse a server that may forget a round while it runs, because its memory is full.

    Args:
        warn: log it if that is not refused, or cannot be found out.
        refuse: raise.

    Raises:
        StoreUnfit: it may, and `refuse` is true.
        StoreError: it cannot be asked.
    """
    with store_errors(url):
        policy = _eviction_policy(client)
    if policy == "noeviction":
        return
    server = f"Redis at {shown_url(url)}"
    sentence = (
        f"{server} has maxmemory-policy {policy}, with which it may forget a running round and its nonces: set "
        "maxmemory-policy to noeviction (`CONFIG SET maxmemory-policy noeviction`, in redis.conf, or in the "
        "parameter group of a managed Redis)."
    )
    if policy is None:
        sentence = (
            f"{server} does not tell its maxmemory-policy to this user (that takes the right +info): with "
            "another one than noeviction it may forget a running round."
        )
    elif refuse:
        raise StoreUnfit(sentence)
    if warn:
        logger.warning("%s", sentence)


def check_rights(client: redis.Redis, url: str) -> None:
    """Refuse a user who may not write, or not use the channels of Celery's events and remote control.

    Raises:
        StoreForbidden: it is one.
        StoreError: it cannot be found out now.
    """
    db = client.connection_pool.connection_kwargs.get("db") or 0
    channels: Any
    with store_errors(url), client.pubsub() as channels:  # type: ignore[no-untyped-call]
        client.set(PROBE_KEY, "", px=1)
        channels.psubscribe(f"/{db}.celery.pidbox")
        channels.get_message(timeout=client.connection_pool.connection_kwargs["socket_timeout"])


def shown_url(url: str) -> str:
    """Return `url` without user and password, for messages and logs."""
    # Cut by hand: a password with a `/` in it would be a part of the path to `urlsplit`.
    scheme, _, rest = url.partition("://")
    place = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return f"{scheme}://{place}"


def _version(client: redis.Redis) -> str:
    try:
        return str(client.info("server")["redis_version"])
    except NoPermissionError:
        # Every user may say hello.
        said: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
        pairs = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
        return str(pairs.get("version", ""))


def _eviction_policy(client: redis.Redis) -> str | None:
    """Return what the server does when its memory is full; None: it tells nobody."""
    try:
        policy = client.info("memory").get("maxmemory_policy")
        # A server that does not know the field has no such policy, or says so elsewhere.
        return "noeviction" if policy is None else str(policy)
    except NoPermissionError:
        pass
    try:
        found: Any = client.config_get("maxmemory-policy")
        return str(found["maxmemory-policy"])
    except (redis.ResponseError, KeyError):
        return None
