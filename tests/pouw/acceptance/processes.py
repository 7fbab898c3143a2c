"""Nodes as processes: `pocqueue pouw node`, each forked from a process that has imported it already. And a client that lies.

So fifty starts cost little: what is left of one is the node's own. Their trainers are started as ever.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.files import NODE_KEY
from tests.pouw.acceptance.lies import CHANGES, LIES
from tests.support.commands import without_settings
from tests.support.waiting import wait_until

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    *("pocqueue.cli.pouw", "pocqueue.pouw.service", "pocqueue.pouw.flow.life"),
    *("pocqueue.web.serve", "pocqueue.web.listener", "tests.pouw.acceptance.processes"),
])  # fmt: skip
_PR_SET_PDEATHSIG = 1


class NodeProcess:
    """A node of a test's network. It keeps folder and ports when it is started again.

    Args:
        folder: for its files, its log beside them.
        role: its role.
        network: path of the network, or `dev`.
        bootstrap: it dials these.
        name: its name [default: the folder's].
        options: more of the command's.
        key: of its account [default: made by itself].
        can_be_told: it is one of `pocqueue.pouw.chaos.node`.
        change: what is different in it from its start on, by its name in `lies.CHANGES` [default: nothing].
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        network: str,
        *bootstrap: NodeProcess,
        name: str | None = None,
        options: str = "",
        key: SigningKey | None = None,
        can_be_told: bool = False,
        change: str = "",
    ) -> None:
        self.folder, self.name = folder, name or folder.name
        folder.mkdir(exist_ok=True)
        if key is not None:
            key.save_pem(folder / NODE_KEY)
        self._can_be_told, self._change = can_be_told, change
        self.log = folder.with_name(f"{self.name}.log")
        self.port, self.http_port = _free_ports()
        self.argv = ["pouw", "node", "--role", role, "--node-id", self.name, "--host", "127.0.0.1"]
        self.argv += [
            "--port",
            str(self.port),
            "--http-port",
            str(self.http_port),
            *options.split(),
        ]
        for one in bootstrap:
            self.argv += ["--bootstrap", f"127.0.0.1:{one.port}"]
        self.env = _env(folder, network)
        self._process: ForkServerProcess | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process, and return at once."""
        self._process = _FORKS.Process(
            target=_run,
            args=(self.argv, self.env, str(self.log), self._can_be_told, self._change),
        )
        self._process.start()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None
        process = self._process
        wait_until(lambda: process.exitcode is not None, message=f"the end of {self.name}")
        code = process.exitcode
        assert code is not None
        self._process.close()
        self._process = None
        return code

    def kill(self) -> None:
        """End it at once, as the kernel does."""
        self.signal(signal.SIGKILL)
        self.ended()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            if self._process.exitcode is None:
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGTERM)
            self.ended()

    def ask(self, path: str = "status", *, post: bool = False) -> Any:
        """Return what it answers over HTTP; None: nothing."""
        url = f"http://127.0.0.1:{self.http_port}/api/{path}"
        request = urllib.request.Request(url, method="POST" if post else "GET")
        try:
            # However busy the machine is: a process that has ended refuses at once.
            with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310
                return json.loads(reply.read())
        except (OSError, ValueError):
            return None

    def account(self) -> str:
        """Wait until it answers; return its account."""
        status = wait_until(self.ask, message=f"an answer of {self.name}")
        account = status["public_key"]
        assert isinstance(account, str)
        return account

    def tell(self, what: str) -> None:
        """Tell one that can be told: ``heal``, ``cheat/NAME``."""
        assert self.ask(f"chaos/{what}", post=True) is True

    def cut(self, *others: NodeProcess) -> None:
        """Have it lose its links with others, until it is healed; they have to be told the same."""
        accounts = [f"account={one.account()}" for one in others]
        self.tell(f"cut?{'&'.join(accounts)}")

    def number(self, name: str) -> int:
        """Return a number of its status; -1: it does not answer."""
        status = self.ask()
        return -1 if status is None else int(status[name])

    def until_past(self, name: str, number: int) -> int:
        """Wait until a number of its status is above another one; return it."""
        found = [-1]

        def is_past() -> bool:
            if self._process is not None and self._process.exitcode is not None:
                raise AssertionError(f"{self.name} ended:\n{self.log.read_text()[-3000:]}")
            found[0] = self.number(name)
            return found[0] > number

        wait_until(is_past, message=f"{name} of {self.name} above {number}")
        return found[0]

    def trainer(self) -> psutil.Process | None:
        """Return the process that trains for it."""
        for child in psutil.Process(self.pid).children():
            if "pocqueue.pouw.training.child" in child.cmdline():
                return child
        return None


def order(folder: Path, network: str, at: NodeProcess, *argv: str, change: str) -> tuple[int, str]:
    """Run `pocqueue pouw task submit --watch` to its end; return its exit code, and what it wrote.

    Args:
        folder: for the client's files.
        network: path of the network.
        at: it dials this node.
        argv: more of the command's.
        change: what is different in it, by its name in `lies.CHANGES`.
    """
    folder.mkdir()
    log = folder.with_suffix(".log")
    whole = ["pouw", "task", "submit", *argv, "--watch", "--bootstrap", f"127.0.0.1:{at.port}"]
    process = _FORKS.Process(
        target=_run, args=(whole, _env(folder, network), str(log), False, change)
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.read_text()


def _env(folder: Path, network: str) -> dict[str, str]:
    return {
        **without_settings(),
        "POCQUEUE_STATE_DIR": str(folder),
        "POCQUEUE_POUW_DIR": str(folder),
        "POCQUEUE_POUW_NETWORK": network,
    }


def _run(argv: list[str], env: dict[str, str], log: str, can_be_told: bool, change: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["pocqueue", *argv]
    if change:
        CHANGES[change]()
    if can_be_told:
        from pocqueue.pouw.chaos.cheats import CHEATS
        from pocqueue.pouw.chaos.node import main

        CHEATS.update(LIES)
        sys.argv = ["node", *argv[2:]]
    else:
        from pocqueue.cli import main
    main()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
