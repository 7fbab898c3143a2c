"""One gateway process: its store, its hub, its server in a thread, and what tasks ask of it.

Knows nothing of Celery: whatever runs it brings the tasks, from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import ProcessError
from pocqueue.hosts.commands import Commands
from pocqueue.hosts.errors import DatabaseUnavailable
from pocqueue.hosts.gateway.app import allowed_origins, create_app, raise_file_limit
from pocqueue.hosts.gateway.audit import Auditor
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.limits import Limit, RateLimits
from pocqueue.hosts.gateway.messenger import Messenger, What
from pocqueue.hosts.gateway.metrics import Metrics
from pocqueue.hosts.gateway.origins import page_rules
from pocqueue.hosts.gateway.results import count_end
from pocqueue.hosts.gateway.timings import GatewayTimings
from pocqueue.hosts.leases import Outcome, Verdict
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.leases import Finished
from pocqueue.hosts.wire import origin_of
from pocqueue.rounds.relays import Relays
from pocqueue.settings import HOSTS_PREFIX, HostsSettings, Settings
from pocqueue.web.listener import address_of, listen
from pocqueue.web.serve import ServerThread
from pocqueue.web.tls import check_certificate
from pocqueue.words import counted

logger = logging.getLogger(__name__)

#: Agents that do not read while a job runs, as some do, answer no ping for as long.
PONG_S: Final = 330.0
#: Requests at work at the end may take this long, in seconds.
END_S: Final = 3
#: A task waits this long for a node to be told, in seconds.
_TELL_S: Final = 30.0

T = TypeVar("T")


def check_service(settings: Settings, hosts: HostsSettings) -> None:
    """Find out what would keep a gateway from starting, but for its ports; a database that is away will do.

    Raises:
        SettingsError, CommandsError, DatabaseUnfit: somebody has to mend it first.
    """
    check_certificate(hosts.tls_cert, hosts.tls_key)
    Commands.load(hosts.commands_file)
    page_rules(allowed_origins(hosts), f"{HOSTS_PREFIX}CORS_ORIGINS")
    try:
        HostStore.open(settings, hosts).close()
    except DatabaseUnavailable as exc:
        logger.warning("%s It is waited for.", exc)


class GatewayService(Closing):
    """A gateway.

    Args:
        relay: its name.
        settings: of the state folder and the proxies.
        messenger: sends what other gateways, or this one later, do.
        relays: where it says that it is there; None: nowhere.
        hosts: of the gateway; None: from the environment.
        timings: that tests shorten.

    Raises:
        SettingsError, DatabaseUnfit: somebody has to mend it first.
    """

    def __init__(
        self,
        relay: str,
        settings: Settings,
        messenger: Messenger,
        relays: Relays | None = None,
        *,
        hosts: HostsSettings | None = None,
        timings: GatewayTimings | None = None,
        limits_factor: float = 1.0,
    ) -> None:
        hosts = hosts or HostsSettings.load()
        raise_file_limit()
        certificate = check_certificate(hosts.tls_cert, hosts.tls_key)
        metrics = Metrics()

        def on_limited(limit: Limit) -> None:
            metrics.count("rate_limited", limit.name.lower())

        self._messenger = messenger
        self._store = HostStore.open(settings, hosts, wait=True)
        own = None
        self._is_nameless = hosts.public_url is None and not _is_loopback(hosts.host)
        if hosts.public_url is not None:
            own = frozenset({origin_of(hosts.public_url), "localhost", "127.0.0.1", "::1"})
        self.hub = Hub(
            relay,
            self._store,
            messenger,
            relays,
            limits=RateLimits(limits_factor, on_limited),
            metrics=metrics,
            timings=timings or GatewayTimings(),
            origins=own,
        )
        self._auditor = Auditor(
            self._store,
            metrics,
            first_s=self.hub.timings.first_audit_s,
            every_s=self.hub.timings.audit_s,
        )
        app = create_app(self.hub, hosts)
        self.listeners = [
            listen(hosts.host, hosts.port, HOSTS_PREFIX, otherwise=_otherwise("PORT")),
            listen(
                hosts.host, hosts.ws_port, f"{HOSTS_PREFIX}WS_", otherwise=_otherwise("WS_PORT")
            ),
        ]
        self._scheme = "http" if certificate is None else "https"
        self._server = ServerThread(
            app,
            self.listeners,
            certificate=certificate,
            trusted_proxies=settings.trusted_proxies,
            pong_s=PONG_S,
            end_s=END_S,
        )

    def start(self) -> None:
        """Begin to serve.

        Raises:
            ProcessError: the application did not start.
        """
        if not self._server.start():
            raise ProcessError("The gateway of GPU hosts did not start; its log says why.")
        self._auditor.start()
        if self._is_nameless:
            logger.warning(
                "%sPUBLIC_URL is not set: wallets sign in by an address or localhost alone, and agents may call this "
                "gateway by any name. Set it before the gateway is on the internet.",
                HOSTS_PREFIX,
            )
        first, second = map(address_of, self.listeners)
        logger.info("GPU hosts: %s://%s, and agents at %s.", self._scheme, first, second)

    @override
    def close(self) -> None:
        """Tell agents that it ends, and end; may be called again."""
        self._auditor.close()
        self._server.close()
        self._store.close()

    # What tasks ask, from any thread

    def place(self, job_id: str) -> str:
        """Find a node for a job, and send it there, or have its gateway do so; return a line for Flower."""
        try:
            found = self._store.places.place(job_id)
        except DatabaseUnavailable as exc:
            # The next sweep finds the job.
            logger.warning("Job %s waits. %s", job_id, exc)
            return "the database is away"
        if found is None:
            return "placed by somebody else, or over"
        if isinstance(found, str):
            return found
        line = f"attempt {found.n} is given to node {found.node_id}"
        if found.relay == self.hub.relay:
            return f"{line}: {self.tell(What.JOB, found.node_id, job_id, found.n)}"
        self._messenger.tell(found.relay, What.JOB, found.node_id, job_id, found.n)
        return line

    def sweep(self) -> str:
        """End leases that ran out, and find nodes for the jobs that wait; return a line for Flower.

        No lease ends as long as what its node has said may not be in the database, as after an outage of it.
        """
        try:
            is_known = self._in_loop(self.hub.has_heard_all()) is True
            lost = self._store.leases.sweep() if is_known else []
            for done in lost:
                turn = done.attempt
                count_end(self.hub.metrics, done)
                logger.warning(
                    "Job %s: attempt %d on node %s is over: %s.",
                    *(turn.job_id, turn.n, turn.node_id, turn.outcome),
                )
                if turn.outcome is not Outcome.RELAY_LOST:
                    self._messenger.tell(turn.relay, What.CANCEL, turn.node_id, turn.job_id, turn.n)
            self._store.places.end_stranded()
            num_begun = 0
            for turn in self._store.places.place_waiting():
                self._messenger.tell(turn.relay, What.JOB, turn.node_id, turn.job_id, turn.n)
                num_begun += 1
            self._store.forget()
        except DatabaseUnavailable as exc:
            logger.warning("Leases are looked at later. %s", exc)
            return "the database is away"
        return f"{counted(len(lost), 'attempt')} lost, {num_begun} begun"

    def tell(self, what: str, node_id: str, job_id: str = "", n: int = 0) -> str:
        """Tell a node of this gateway; return a line for Flower."""
        about = What(what)
        try:
            if about is What.CANCELLED:
                about = What.CANCEL
                job, turns = self._store.jobs.get(job_id), self._store.jobs.attempts(job_id)
                for turn in turns:
                    if turn.n == n:
                        count_end(self.hub.metrics, Finished(Verdict.COUNTS, job, turn))
            return self._in_loop(self.hub.tell(about, node_id, job_id, n))
        except DatabaseUnavailable as exc:
            logger.warning("Node %s is not told of job %s. %s", node_id, job_id, exc)
            return "the database is away"

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T | str:
        """Do something in the gateway's loop; return what comes of it, or a word about why nothing does."""
        loop = self.hub.loop
        if loop is None or loop.is_closed():
            work.close()
            return "this gateway ends"
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result(_TELL_S)
        except (concurrent.futures.CancelledError, TimeoutError):
            return "not told in time"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _otherwise(name: str) -> str:
    return f"choose another with {HOSTS_PREFIX}{name}"
