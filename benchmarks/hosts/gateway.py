"""A gateway in the stack that an operator gets, and what its process takes."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    settings: Settings, log_dir: Path, *, gpus: int | None = None
) -> Iterator[tuple[LocalStack, Gateway]]:
    """Run a stack with a gateway until the end of the block.

    Args:
        settings: of its state folder.
        log_dir: gets the logs of its processes.
        gpus: as in `local_stack`.
    """
    port, token = free_port(), secrets.token_hex(16)
    own = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WS_PORT": str(free_port()),
        "ADMIN_TOKEN": token,
    }
    # The stack reads them from the environment, as an operator's does.
    os.environ |= {f"{HOSTS_PREFIX}{name}": value for name, value in own.items()}
    try:
        with local_stack(settings, gpus=gpus, flower=False, hosts=True, log_dir=log_dir) as stack:
            yield stack, Gateway(f"http://127.0.0.1:{port}", token)
    finally:
        for name in own:
            del os.environ[f"{HOSTS_PREFIX}{name}"]
