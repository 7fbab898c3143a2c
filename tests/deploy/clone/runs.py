"""Runs on a clone: in this process, and as the command that people type."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf, parse_conf
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.log import Log
from pocqueue.deploy.runner import deploy, run_all
from tests.deploy.clone.machine import USER
from tests.deploy.confs import PASSWORD, text
from tests.deploy.running_node import World
from tests.support.commands import without_settings

#: Its disk is small.
IGNORED = ("disk",)
_LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[(?:INFO|CHECK|EXEC|OUTPUT|OK|SKIP|WARN|ERROR)\] "
)


class Place(Protocol):
    """Where a server is, and how one gets in."""

    port: int

    @property
    def host_key(self) -> str:
        """Return its public key, ``TYPE BASE64``."""

    @property
    def client_key(self) -> Path:
        """Return a private key that is let in."""


@dataclass(frozen=True)
class Done:
    """What came of a run.

    Attributes:
        code: that it left with.
        lines: that it wrote, without times.
    """

    code: int
    lines: list[str]

    def of(self, *levels: str) -> list[str]:
        """Return the messages of some levels."""
        return [line for line in self.lines if line.partition("]")[0][1:] in levels]

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


def done(code: int, text: str) -> Done:
    """Return what came of a run that wrote a text, which is a log and has no password."""
    assert PASSWORD not in text
    lines = text.splitlines()
    assert all(_LINE.match(line) for line in lines), text
    return Done(code, [line.partition("] ")[2] for line in lines])


class Runs:
    """Runs on one server.

    Args:
        place: where it is.
        folder: for the conf file.
        changes: of the conf.
    """

    def __init__(self, place: Place, folder: Path, **changes: str | None) -> None:
        folder.mkdir(exist_ok=True)
        fields = {
            "SERVER_IP": "127.0.0.1",
            "SSH_USER": USER,
            "SSH_PORT": str(place.port),
            "SSH_KEY": str(place.client_key),
            "SSH_HOST_KEY": fingerprint_of(place.host_key),
            "VOLUME_MIN_GB": "0",
        }
        self.path = folder / "node1.conf"
        self.path.write_text(text(**(fields | changes)))
        self.path.chmod(0o600)

    @property
    def conf(self) -> Conf:
        """What the file says."""
        return parse_conf(self.path.read_bytes(), self.path)

    async def __call__(
        self, work: Callable[[Conf, Log, Options], Awaitable[None]] = deploy, **options: Any
    ) -> Done:
        """Do something in this process; what it writes has the log's form."""
        console = io.StringIO()
        given = {
            **{"is_confirmed": True, "ignored": IGNORED, "last": 1},
            **{"outside": World(), "growth_s": 0.01, **options},
        }
        retry_delays_s = (0.0, 0.1, 0.3, 1.0, 3.0)
        code = await run_all(
            [self.conf], Options(console=console, retry_delays_s=retry_delays_s, **given), work
        )
        return done(code, console.getvalue())

    def command(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start `pocqueue deploy WORDS CONF`."""
        return subprocess.Popen(
            [sys.executable, "-m", "pocqueue", "deploy", *words, str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=without_settings() | {"HOME": str(self.path.parent), **options},
        )

    def typed(self, *words: str) -> Done:
        """Run that command to its end."""
        process = self.command(*words)
        out, err = process.communicate(timeout=300)
        assert not err, err
        return done(process.returncode, out)
