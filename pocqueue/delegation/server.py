"""Runs the delegation service: its port, its certificate, its processes."""

from __future__ import annotations

import logging
import socket

from pocqueue.delegation.app import service_token
from pocqueue.delegation.customers import Customers, TokensFile, tokens_path
from pocqueue.logs import log_to_stderr
from pocqueue.rounds.connection import redis_url
from pocqueue.settings import DELEGATION_PREFIX, DelegationSettings, Settings
from pocqueue.web import listener
from pocqueue.web.serve import serve as serve_app
from pocqueue.web.tls import check_certificate

logger = logging.getLogger(__name__)

APP = "pocqueue.delegation.app:create_app"


def serve(settings: Settings, delegation: DelegationSettings, *, num_processes: int) -> None:
    """Serve until a signal ends it. The processes read their settings from the environment.

    Args:
        settings: of all processes.
        delegation: of the service.
        num_processes: that share the port.

    Raises:
        SettingsError: a setting is missing or not allowed, or the port cannot be had.
        ProcessError: the bundled Redis did not start.
    """
    log_to_stderr(settings.log_level)
    # All that can be wrong is found here, before there are processes to find it.
    Customers(service_token(delegation), TokensFile(tokens_path(settings, delegation)))
    certificate = check_certificate(delegation.tls_cert, delegation.tls_key)
    redis_url(settings, start=True)
    open_port = listen(delegation)
    scheme = "http" if certificate is None else "https"
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    logger.info(
        "DELEGATION serves on %s://%s with %s.", scheme, listener.address_of(open_port), processes
    )
    serve_app(APP, open_port, num_processes=num_processes, certificate=certificate)


def listen(delegation: DelegationSettings) -> socket.socket:
    """Return the service's port, so that it is known to be free before anything starts.

    Raises:
        SettingsError: it cannot be had.
    """
    return listener.listen(delegation.host, delegation.port, DELEGATION_PREFIX)
