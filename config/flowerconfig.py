"""How Flower shows pocqueue: `celery -A pocqueue flower --conf=config/flowerconfig.py`.

Tornado executes this file and takes each top-level name that is one of Flower's options. So nothing
else here may be called like an option (`logging`, `auth`, `db`, `debug`, `help` ...).
The command line wins over this file, this file over Flower's own `FLOWER_*` variables.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import click
import flower.command
import flower.views
from flower.app import Flower
from flower.utils.broker import RedisBase
from tornado.ioloop import PeriodicCallback
from tornado.options import options

from pocqueue.errors import SettingsError
from pocqueue.rounds.connection import redis_url
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.settings import Settings

#: How often to look for workers whose queues are not known yet.
_NEWCOMER_CHECK_MS = 2000.0


class BadSetting(click.ClickException):
    """A setting that Flower must not start with; Celery's command prints the message alone."""

    exit_code = 2  # pocqueue's code for bad input


try:
    _settings = Settings.load()
except SettingsError as exc:
    raise BadSetting(str(exc)) from None

_credentials = _settings.flower_basic_auth.get_secret_value() if _settings.flower_basic_auth else ""
if _credentials and not re.fullmatch(r"[^:]+:.+", _credentials):
    raise BadSetting("POCQUEUE_FLOWER_BASIC_AUTH has to be user:password, both not empty.")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address; the empty one means every interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def guard() -> None:
    """Refuse an open bind, and switch off all operations where nobody has to log in.

    Runs after the command line was read for the last time, so that it judges what will be used.

    Raises:
        BadSetting: Flower would listen off loopback with no password.
    """
    if options.basic_auth or options.auth:
        return
    reachable = not options.unix_socket and not is_loopback(options.address)
    if reachable and not _settings.flower_allow_open:
        raise BadSetting(
            f"Flower would show every task to whoever can reach {options.address or 'this machine'}"
            f" on port {options.port}: set POCQUEUE_FLOWER_BASIC_AUTH=user:password, or listen on"
            " 127.0.0.1. Where something else limits access, such as a container's published port,"
            " POCQUEUE_FLOWER_ALLOW_OPEN=1 allows it."
        )
    # Flower's API refuses callers without a password anyway; this hides the buttons that call it.
    options.read_only = True


class QueueAwareFlower(Flower):  # type: ignore[misc]  # Flower ships no types
    """Flower that learns the queues of workers which start after it.

    Flower 2.2 asks the workers for their queues once, when it starts, and its broker page lists
    only these. `pocqueue up` starts both at the same moment, and GPUs join at any time.
    """

    def start(self) -> None:
        """Start the checks, then Flower; returns when Flower ends."""
        PeriodicCallback(self.inspect_newcomers, _NEWCOMER_CHECK_MS).start()
        super().start()

    def start_http_server(self) -> int | None:
        """Listen as Flower does; return the port, if it is one.

        Raises:
            BadSetting: the port cannot be had.
        """
        try:
            listens_on: int | None = super().start_http_server()
            return listens_on
        except OSError as exc:
            if options.unix_socket:
                raise
            raise BadSetting(
                f"POCQUEUE_FLOWER_PORT is {options.port} on {options.address or 'every address'}, which cannot be"
                f" listened on ({exc.strerror or exc}): end what uses it, or choose another with --port, or an"
                " address of this machine with POCQUEUE_FLOWER_ADDRESS."
            ) from None

    def inspect_newcomers(self) -> None:
        """Ask the workers for their queues if one is alive that has not told yet."""
        for name, worker in self.events.state.workers.items():
            if worker.alive and "active_queues" not in self.workers.get(name, {}):
                self.update_workers()
                return


class PoolBroker(RedisBase):  # type: ignore[misc]  # Flower ships no types
    """Reads the lengths of queues for the Broker page.

    Flower's own readers know nothing of TLS in a Redis's URL, of a user on a Unix socket, or of more
    sentinels than one.
    """

    def __init__(self, broker_url: str, **options: Any) -> None:
        super().__init__(broker_url, **options)
        self.redis = RedisUrl.parse(redis_url(_settings, start=True)).async_client()


flower.command.Flower = QueueAwareFlower
flower.views.Broker = PoolBroker
options.add_parse_callback(guard)

address = _settings.flower_address
port = _settings.flower_port
if _credentials:
    basic_auth = [_credentials]

# In memory only: the file Flower would keep is a pickle, and Redis has everything that matters.
persistent = False
# A GPU makes about one task a second: several full rounds on eight GPUs, some tens of megabytes.
max_tasks = 10_000
max_workers = 1_000
# A worker that is gone for an hour, as long as a round is kept, leaves the list.
purge_offline_workers = 3600
# A worker whose Python is busy launching kernels may need more than Flower's one second to answer.
inspect_timeout = 2000.0

auto_refresh = True
# Kwargs are as the scheduler words them: nonce indices first, then the round.
tasks_columns = "name,state,kwargs,result,received,started,runtime,worker,uuid"
# To the millisecond, "3 seconds ago" on hover: ranges take a second, and the wait between received
# and started is what tells whether the queue keeps its GPU busy.
natural_time = False
