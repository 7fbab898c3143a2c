"""What the commands of GPU hosts share: the store, and a word to the gateways that run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pocqueue.cli.output import console
from pocqueue.errors import SettingsError

if TYPE_CHECKING:
    from pocqueue.hosts.store import HostStore


#: Seconds to wait for the database. A gateway whose thousands of nodes come back together writes to SQLite nearly all the
#: time, and whoever waits for that has to look at the right moment.
_PATIENCE_S = 60.0


@contextmanager
def open_store() -> Iterator[HostStore]:
    """Open the store of the settings within the block.

    Raises:
        SettingsError: its packages are not installed, or there is no such node or job.
        HostError: the database cannot be used.
    """
    from pocqueue.settings import HostsSettings, Settings

    try:
        from pocqueue.hosts.errors import UnknownJob, UnknownNode
        from pocqueue.hosts.store import HostStore
    except ImportError as exc:
        raise SettingsError(
            f"GPU hosts take more packages ({exc}): pip install 'pocqueue[hosts]'."
        ) from None
    with HostStore.open(Settings.load(), HostsSettings.load(), busy_timeout_s=_PATIENCE_S) as store:
        # Their own words are those of the wire.
        try:
            yield store
        except UnknownNode:
            raise SettingsError(
                "There is no such node, or it is out for good. `pocqueue hosts node list` shows them."
            ) from None
        except UnknownJob:
            raise SettingsError(
                "There is no such job. `pocqueue hosts job list` shows them."
            ) from None


def tell(task: str, queue: str, **about: Any) -> None:
    """Send a task to the gateways. Where none can be reached this is said: they look by themselves, too.

    Args:
        task, queue: of `rounds.task_names`.
        about: what the task is told.
    """
    from kombu.exceptions import OperationalError

    from pocqueue.errors import StoreError
    from pocqueue.rounds.connection import redis_url
    from pocqueue.settings import Settings

    try:
        redis_url(Settings.load())
        from pocqueue.app import app

        app.send_task(task, kwargs=about, queue=queue, ignore_result=True)
    except (StoreError, OperationalError):
        console(stderr=True).print(
            "It is written down. No gateway could be told, as Redis does not answer: one that runs sees it within "
            "seconds once Redis does.",
            style="yellow",
        )
