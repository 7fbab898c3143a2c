"""The gateway's own look at the ledger, now and then: what differs is a figure and a line of the log."""

from __future__ import annotations

import logging
import threading
from typing import Final

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.gateway.metrics import Metrics
from pocqueue.hosts.store import HostStore

logger = logging.getLogger(__name__)

#: Differences that are written out; the command has all of them.
_MOST: Final = 10
#: A look that is under way when the gateway ends may take this long, in seconds.
_PATIENCE_S: Final = 1.0


class Auditor(Closing):
    """Compares the ledger with what it is about, in a thread of its own, as it may take long.

    Args:
        store: of the gateway.
        metrics: that tell how many differences there were the last time.
        first_s: seconds until the first time.
        every_s: seconds between two times.
    """

    def __init__(
        self, store: HostStore, metrics: Metrics, *, first_s: float, every_s: float
    ) -> None:
        self._store, self._metrics = store, metrics
        self._first_s, self._every_s = first_s, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hosts-audit", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @override
    def close(self) -> None:
        """End; a look that is long is not waited for. May be called again."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._over.wait(wait_s):
            wait_s = self._every_s
            try:
                found = self._store.ledger.differences()
            except (DatabaseUnavailable, DatabaseUnfit) as exc:
                if self._over.is_set():
                    return
                logger.warning("The ledger is looked at later. %s", exc)
                continue
            self._metrics.ledger_mismatch = len(found)
            for sentence in found[:_MOST]:
                logger.error("The ledger differs: %s", sentence)
            if len(found) > _MOST:
                logger.error("%d differences; `pocqueue hosts audit` names all.", len(found))
