"""Certificates: what a service answers https with, and what the certificates of others are checked with."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from pocqueue.errors import SettingsError


class Certificate(NamedTuple):
    """What a service answers https with: PEM files of a certificate and of its key."""

    cert: Path
    key: Path


def check_certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    """Return what a service answers https with, once it is known to work; None: there is none.

    Args:
        cert: PEM file of --tls-cert.
        key: PEM file of --tls-key.

    Raises:
        SettingsError: one of the two files is missing, or they cannot be used together.
    """
    if cert is None or key is None:
        if cert is key:
            return None
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
    except ssl.SSLError as exc:
        raise SettingsError(
            f"--tls-cert {str(cert)!r} and --tls-key {str(key)!r} cannot be used together ({exc.reason or exc}); "
            "allowed: a certificate and its own private key, both PEM."
        ) from None
    return Certificate(cert, key)


def tls_context(ca: Path | None, setting: str) -> ssl.SSLContext:
    """Return what the certificates of servers are checked with.

    Args:
        ca: PEM file with their authority; None: the system's.
        setting: the variable that names this file, for messages.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as exc:
        raise SettingsError(
            f"{setting} is {str(ca)!r}, which cannot be read as PEM certificates "
            f"({getattr(exc, 'strerror', None) or 'no certificate in it'}): give the authority's file."
        ) from None
