"""Runs the delegation service: its port, its certificate, its processes."""

from __future__ import annotations

import logging
import socket
import ssl

from pocqueue.delegation.app import service_token
from pocqueue.delegation.customers import Customers, TokensFile, tokens_path
from pocqueue.errors import SettingsError
from pocqueue.logs import log_to_stderr
from pocqueue.rounds.connection import redis_url
from pocqueue.settings import DELEGATION_PREFIX, DelegationSettings, Settings
from pocqueue.web import listener
from pocqueue.web.serve import Certificate, serve as serve_app

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
    certificate = check_tls(delegation)
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


def check_tls(delegation: DelegationSettings) -> Certificate | None:
    """Return the certificate, of which is known that it can be used; None: there is none.

    Raises:
        SettingsError: one of the two files is missing, or they cannot be used together.
    """
    cert, key = delegation.tls_cert, delegation.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        given, missing = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise SettingsError(f"{given} is set and {missing} is not: https needs both of them.")
    for name, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as exc:
            raise SettingsError(
                f"{name} is {str(path)!r}, which cannot be read ({exc.strerror}); allowed: a PEM file."
            ) from None

    def no_password() -> str:
        raise SettingsError(
            f"--tls-key is {str(key)!r}, which is encrypted; allowed: a PEM file without a password."
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=no_password)
    except (ssl.SSLError, ValueError) as exc:
        if isinstance(exc, SettingsError):
            raise
        reason = getattr(exc, "reason", None) or str(exc)
        raise SettingsError(
            f"--tls-cert {str(cert)!r} and --tls-key {str(key)!r} cannot be used together ({reason}); "
            "allowed: a certificate and its own private key, both PEM."
        ) from None
    return Certificate(cert, key)
