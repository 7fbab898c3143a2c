"""A gateway in the stack that an operator gets, and what its process takes."""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.services import free_port
from pocqueue.local_stack import LocalStack, local_stack
from pocqueue.rounds.task_names import RELAY_PREFIX
from pocqueue.settings import HOSTS_PREFIX, Settings


@dataclass(frozen=True)
class Gateway:
    """One that this process has started."""

    url: str
    admin_token: str
    tls: ssl.SSLContext | None = None  #: that trusts its certificate; None: it has none

    @property
    def ws_url(self) -> str:
        """Where agents connect."""
        return self.url.replace("http", "ws", 1)

    def process(self) -> psutil.Process:
        """Return the process that has the sockets."""
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word.startswith(RELAY_PREFIX) for word in child.cmdline()):
                    return child
        raise RuntimeError("The gateway's process is not there.")


@contextlib.contextmanager
def hosts_stack(
    settings: Settings,
    log_dir: Path,
    *,
    gpus: int | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[tuple[LocalStack, Gateway]]:
    """Run a stack with a gateway until the end of the block.

    Args:
        settings: of its state folder.
        log_dir: gets the logs of its processes.
        gpus: as in `local_stack`.
        certificate: with its authority, and its key, both in PEM; None: no TLS.
    """
    port, token = free_port(), secrets.token_hex(16)
    scheme, tls = "http", None
    own = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WS_PORT": str(free_port()),
        "ADMIN_TOKEN": token,
    }
    if certificate is not None:
        own |= {"TLS_CERT": str(certificate[0]), "TLS_KEY": str(certificate[1])}
        scheme, tls = "https", ssl.create_default_context(cafile=certificate[0])
    # The stack reads them from the environment, as an operator's does.
    os.environ |= {f"{HOSTS_PREFIX}{name}": value for name, value in own.items()}
    try:
        with local_stack(settings, gpus=gpus, flower=False, hosts=True, log_dir=log_dir) as stack:
            yield stack, Gateway(f"{scheme}://127.0.0.1:{port}", token, tls)
    finally:
        for name in own:
            del os.environ[f"{HOSTS_PREFIX}{name}"]
