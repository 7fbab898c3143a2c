"""Runs commands in a real sandbox, in a process that may have another user: a line of JSON in, a line of JSON out.

`python -m tests.support.sandbox_process SANDBOX UID OWNER`; a UID of -1 keeps the user. A request is ``{"argv", "limits", "image",
"stop_on"}``: the command is stopped once the file `stop_on` is there. Its environment is to hold a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.options import SandboxName
from pocqueue.hosts.agent.sandbox.base import Command, Limits, Outcome
from pocqueue.hosts.agent.sandbox.choose import choose
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
#: In the environment of the process, and never in that of a job.
SECRET = "hunter2-hunter2"
#: Who an agent without root is in these tests.
ORDINARY_UID = 61_234


def need(program: str, package: str) -> None:
    """Skip a test on a machine without a program; in CI it fails."""
    if shutil.which(program) is None:
        sentence = f"{program} is not installed: `apt-get install {package}`"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@dataclass
class SandboxProcess:
    """The process, as tests see it."""

    process: subprocess.Popen[str]
    is_root: bool
    owner: str  #: mark of what it starts
    name: str  #: of its sandbox

    def run(
        self,
        *argv: str,
        stop_on: Path | None = None,
        image: str | None = None,
        **limits: float,
    ) -> Outcome:
        """Run one command."""
        self.start(*argv, stop_on=stop_on, image=image, **limits)
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise SandboxUnavailable(answer["error"])
        return Outcome(**answer)

    def start(
        self,
        *argv: str,
        stop_on: Path | None = None,
        image: str | None = None,
        **limits: float,
    ) -> None:
        """Start one command."""
        request: dict[str, object] = {"argv": argv, "limits": limits, "image": image}
        request["stop_on"] = stop_on and str(stop_on)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def script(self, code: str, *argv: str, **limits: float) -> Outcome:
        """Run Python code in the sandbox."""
        return self.run(
            "/usr/bin/python3", "-I", "-c", code, *argv, stop_on=None, image=None, **limits
        )


@contextlib.contextmanager
def sandbox_process(name: str, uid: int = -1) -> Iterator[SandboxProcess]:
    """Start the process; it ends with the block."""
    owner = f"test{uuid.uuid4().hex[:8]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.sandbox_process", name, str(uid), owner],
        env=os.environ | {"HN_NODE_TOKEN": SECRET},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield SandboxProcess(process, os.getuid() == 0 and uid < 0, owner, name)
    finally:
        process.kill()
        process.communicate()


async def _serve(name: SandboxName, owner: str) -> None:
    sandbox = choose(name, owner)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request: dict[str, Any] = json.loads(line)
        stop = asyncio.Event()
        watcher = asyncio.create_task(_stop_on(request["stop_on"], stop))
        try:
            command = Command(
                tuple(request["argv"]), Limits(**request["limits"]), image=request["image"]
            )
            answer: dict[str, Any] = asdict(await sandbox.run(command, stop))
        except SandboxUnavailable as exc:
            answer = {"error": str(exc)}
        finally:
            watcher.cancel()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def _stop_on(path: str | None, stop: asyncio.Event) -> None:
    if path is not None:
        await until(Path(path).exists)
        stop.set()


if __name__ == "__main__":
    if int(sys.argv[2]) >= 0:
        # Python's own files may not be readable any more then.
        for module in ("concurrent.futures.thread", "asyncio.subprocess", "multiprocessing"):
            importlib.import_module(module)
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    asyncio.run(_serve(cast(SandboxName, sys.argv[1]), sys.argv[3]))
