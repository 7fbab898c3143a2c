#!/usr/bin/env python3
"""A small agent of a GPU host, in one file: `python3 agent.py --endpoint ws://HOST:3002 --token TOKEN`.

It needs Python 3.9 or newer and the package `websockets`. It registers with a token, beats every 15 seconds, runs the
commands that the server sends and sends their results. It tries again when there is no connection; but a token is for
one connection, so one that breaks after it registered takes a new token. `pocqueue agent` comes back by a key of its own,
and has a sandbox for commands, keeps results on disk and tests its machine.

Without a sandbox a command runs with the rights of the user that starts this. So only programs of a short list are
started (`--allow`), as a list of words and never by a shell, in an empty folder, with an environment without secrets, and
for a bounded time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

HEARTBEAT_S = 15.0
#: Programs that a command may start, if `--allow` does not say otherwise.
PROGRAMS = ("nvidia-smi", "sleep")
#: Bytes of a command's output that are sent, half of them of its end.
KEPT_BYTES = 256 * 1024
LONGEST_WAIT_S = 30.0

_FINAL = ("Token is required", "Invalid token", "Token already used", "Node is banned")


def log(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def host_info() -> dict[str, Any]:
    """Return what the server is told of this machine."""
    return {"hostname": platform.node(), "gpus": gpus(), "os": operating_system()}


def gpus() -> list[dict[str, str]]:
    """Return name and memory of each GPU, as nvidia-smi says it; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    return [{"name": name.strip(), "memory": f"{memory.strip()} MiB"} for name, memory in rows]


def operating_system() -> str:
    """Return the name of the operating system."""
    with contextlib.suppress(OSError), open("/etc/os-release", encoding="utf-8") as file:
        for line in file:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip('"')
    return platform.system()


def words_of(job: dict[str, Any], programs: tuple[str, ...]) -> list[str]:
    """Return the words of a job's command.

    Raises:
        ValueError: it has none, or its program is not allowed.
    """
    argv = job.get("argv")
    words = shlex.split(str(job.get("command") or "")) if argv is None else [str(w) for w in argv]
    if not words:
        raise ValueError("The job has no command.")
    if words[0] not in programs:
        raise ValueError(
            f"{words[0]} is not among the programs that may be started here: {', '.join(programs)}."
        )
    return words


async def run(words: list[str], limit_s: float) -> tuple[str, int | None, str]:
    """Run a command; return the job's status, its exit code and its output, shortened."""
    with work_folder() as folder:
        env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": folder, "LANG": "C.UTF-8"}
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - at once; allowed words, no shell
                words,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            return "failed", None, f"{words[0]} cannot be started: {exc.strerror}\n"
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, follow, process, limit_s)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """Make an empty folder, and remove it whatever was made of it; what links in it lead to is left alone."""
    folder = tempfile.mkdtemp(prefix="job-")
    try:
        yield folder
    finally:
        for path, names, _ in os.walk(folder):
            for name in names:
                if not os.path.islink(os.path.join(path, name)):
                    with contextlib.suppress(OSError):
                        os.chmod(os.path.join(path, name), 0o700)
        shutil.rmtree(folder, ignore_errors=True)


def follow(process: subprocess.Popen[bytes], limit_s: float) -> tuple[str, int | None, str]:
    """Wait for the end of a process, and see to it; return what `run` does."""
    output = Output()
    assert process.stdout is not None
    reader = threading.Thread(target=output.read, args=(process.stdout,), daemon=True)
    reader.start()
    end_s, look = time.monotonic() + limit_s, os.WEXITED | os.WNOWAIT | os.WNOHANG
    # Not reaped yet: until it is, the number of its process group belongs to nobody else.
    while not (has_ended := os.waitid(os.P_PID, process.pid, look)) and time.monotonic() < end_s:
        time.sleep(0.02)
    # With what it has left in the background, which would hold the pipe open.
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    reader.join(5)
    text = output.text()
    if not has_ended:
        return "failed", None, f"{text}\n[It ran for more than {limit_s:g} s.]\n"
    return "failed" if code else "completed", code, text


class Output:
    """The beginning and the end of what a command writes."""

    def __init__(self) -> None:
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def read(self, pipe: Any) -> None:
        """Take everything, and keep some."""
        for data in iter(lambda: pipe.read1(65536), b""):
            self.total += len(data)
            room = KEPT_BYTES // 2 - len(self.head)
            self.head += data[:room]
            self.tail = (self.tail + data[max(0, room) :])[-KEPT_BYTES // 2 :]

    def text(self) -> str:
        """Return what is kept."""
        left_out = self.total - len(self.head) - len(self.tail)
        between = f"\n[{left_out} bytes left out]\n" if left_out else ""
        head, tail = self.head.decode("utf-8", "replace"), self.tail.decode("utf-8", "replace")
        return f"{head}{between}{tail}"


def read(text: Any) -> dict[str, Any]:
    """Return what the server says; empty if it is no message."""
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {}


class Refused(Exception):
    """The server does not take this machine, and would not the next time."""


class Host:
    """This machine, over as many connections as it takes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.programs = tuple(name for name in options.allow.split(",") if name)
        self.node_id = ""

    async def serve(self) -> None:
        """Connect again and again.

        Raises:
            Refused: the server does not take this machine.
        """
        failures = 0
        while True:
            try:
                async with connect(self.options.endpoint, max_size=4 << 20) as socket:
                    await self.use(socket)
            except (OSError, EOFError, asyncio.TimeoutError, WebSocketException) as exc:  # noqa: UP041
                log(f"No connection to {self.options.endpoint}: {exc or type(exc).__name__}")
            failures = 1 if self.node_id else failures + 1
            self.node_id = ""
            wait_s = random.uniform(0, min(LONGEST_WAIT_S, 2.0 ** min(failures, 5)))  # noqa: S311
            await asyncio.sleep(wait_s)

    async def use(self, socket: Any) -> None:
        """Serve one connection until it ends."""
        info = await asyncio.get_running_loop().run_in_executor(None, host_info)
        await self.send(socket, type="register", token=self.options.token, hostInfo=info)
        tasks: list[asyncio.Task[None]] = []
        try:
            async for text in socket:
                message = read(text)
                kind = message.get("type")
                if kind == "registered":
                    self.node_id = str(message.get("nodeId"))
                    log(f"Node {self.node_id}: {message.get('message', 'registered')}")
                    tasks.append(asyncio.ensure_future(self.beat(socket)))
                elif kind == "job":
                    tasks.append(asyncio.ensure_future(self.work(socket, message)))
                elif kind == "error":
                    if not self.node_id and message.get("message") in _FINAL:
                        raise Refused(str(message["message"]))
                    log(f"The server says: {message.get('message')}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def beat(self, socket: Any) -> None:
        """Say every 15 seconds that we are there, also while a job runs."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.send(socket, type="heartbeat", nodeId=self.node_id)

    async def work(self, socket: Any, job: dict[str, Any]) -> None:
        """Run a job and send its result."""
        log(f"Job {job.get('id')} …")
        try:
            words = words_of(job, self.programs)
        except ValueError as exc:
            # This machine does not want it: another one may.
            status, logs = "cancelled", f"{exc}\n"
        else:
            try:
                status, _, logs = await run(words, self.options.timeout)
            except OSError as exc:  # a full disk, say
                status, logs = "cancelled", f"This machine cannot run it: {exc.strerror}.\n"
        log(f"Job {job.get('id')}: {status}")
        with contextlib.suppress(WebSocketException):
            await self.send(socket, type="job_result", id=job.get("id"), status=status, logs=logs)

    @staticmethod
    async def send(socket: Any, **message: Any) -> None:
        """Send a message."""
        await socket.send(json.dumps(message))


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; return the exit code."""
    parser = argparse.ArgumentParser(description="A small agent of a GPU host.")
    parser.add_argument("--endpoint", default=os.environ.get("HN_ENDPOINT", "ws://localhost:3002"))
    parser.add_argument("--token", default=os.environ.get("HN_NODE_TOKEN"))
    parser.add_argument("--allow", default=",".join(PROGRAMS), help="programs that may be started")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that a job may run")
    options = parser.parse_args(arguments)
    if not options.token:
        parser.error("--token is missing, or HN_NODE_TOKEN: the server's page makes one")
    if not options.endpoint.startswith(("ws://", "wss://")):
        parser.error(
            "--endpoint, or HN_ENDPOINT, is ws://HOST:PORT or wss://HOST, as the server's page shows it"
        )
    # As Ctrl-C does: what runs is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(Host(options).serve())
    except Refused as exc:
        log(f"The server refuses this machine: {exc}. Make a new token on its page.")
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
