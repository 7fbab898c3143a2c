"""The server as a whole: its system, memory, disk, clock, package manager, open ports, and what it reaches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pocqueue.deploy.facts.parts import UnexpectedAnswer, os_release, pairs, read_parts
from pocqueue.deploy.words import Command

_LISTENER = re.compile(r"LISTEN\s+\d+\s+\d+\s+(\S+):(\d+)\s+\S+(?:\s+(.*))?")
_USER = re.compile(r'\("([^"]*)",pid=(\d+)')


@dataclass(frozen=True, slots=True)
class Listener:
    """A program that listens on a TCP port."""

    address: str  #: ``127.0.0.1``, ``0.0.0.0``, ``*``, ``[::]``, …
    port: int
    program: str  #: empty: not known
    pid: int  #: 0: not known

    @property
    def is_loopback(self) -> bool:
        """Return whether other machines cannot reach it."""
        return self.address.startswith(("127.", "[::1]", "[::ffff:127."))


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """The server.

    Attributes:
        is_root: we are root there.
        distribution: such as ``ubuntu``.
        release: such as ``22.04``.
        kernel: name, release and machine, such as ``Linux 6.8.0-1 x86_64``.
        clock_s: its clock, seconds since 1970.
        memory_bytes: all of it.
        free_memory_bytes: what new programs can have.
        free_bytes: of the disk for the node's data.
        free_inodes: of that disk.
        listeners: None: `ss` is not there.
        apt_pid: process that holds the package manager's lock; None: nobody does.
        is_apt_broken: an installation was interrupted.
        needs_reboot: a new kernel waits.
        is_clock_synced: None: not known.
        tools: programs that are there, of those that are needed.
        reached: HTTP status by URL; 0: not reached.
    """

    is_root: bool
    distribution: str
    release: str
    kernel: str
    clock_s: int
    memory_bytes: int
    free_memory_bytes: int
    free_bytes: int
    free_inodes: int
    listeners: tuple[Listener, ...] | None
    apt_pid: int | None
    is_apt_broken: bool
    needs_reboot: bool
    is_clock_synced: bool | None
    tools: frozenset[str]
    reached: tuple[tuple[str, int], ...]

    @property
    def machine(self) -> str:
        """Return the processor's kind, such as ``x86_64``."""
        return self.kernel.rpartition(" ")[2]


def system_facts(folder: str, urls: Iterable[str] = ()) -> Command:
    """Return the command that reads them; as root, to know whose ports they are.

    Args:
        folder: that the node's data goes to.
        urls: that the server has to reach.
    """
    return Command((folder, *urls), script="system_facts", sudo=True, timeout_s=60)


def read_system(text: str) -> SystemFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(
        *(
            text,
            "id",
            "os",
            "kernel",
            "clock",
            "memory",
            "free",
            "ports",
            "apt",
            "reboot",
            "synced",
            "tools",
            "reach",
        ),
    )
    release = os_release(parts["os"])
    memory = pairs("/proc/meminfo", parts["memory"].wanted().text)
    apt = pairs("the package manager's lock", parts["apt"].text)
    free = parts["free"].wanted().text.split()
    if len(free) != 2 or not {"MemTotal", "MemAvailable"} <= memory.keys():
        raise UnexpectedAnswer("df", parts["free"].text, "free bytes and inodes")
    return SystemFacts(
        is_root=parts["id"].wanted().text.strip() == "0",
        distribution=release.get("ID", ""),
        release=release.get("VERSION_ID", ""),
        kernel=parts["kernel"].wanted().text.strip(),
        clock_s=_int("date", parts["clock"].wanted().text),
        memory_bytes=_int("/proc/meminfo", memory["MemTotal"]) * 1024,
        free_memory_bytes=_int("/proc/meminfo", memory["MemAvailable"]) * 1024,
        free_bytes=_int("df", free[0]),
        # Some filesystems have no such number.
        free_inodes=int(free[1]) if free[1].isdecimal() and free[1] != "0" else 1 << 40,
        listeners=tuple(map(_listener, parts["ports"].lines))
        if parts["ports"].exit_code == 0
        else None,
        apt_pid=_int("/proc/locks", apt["pid"]) if "pid" in apt else None,
        is_apt_broken="broken" in apt,
        needs_reboot=bool(parts["reboot"].text.strip()),
        is_clock_synced={"yes": True, "no": False}.get(parts["synced"].text.strip()),
        tools=frozenset(parts["tools"].lines),
        reached=tuple(sorted(map(_reached, parts["reach"].lines))),
    )


def _listener(line: str) -> Listener:
    match = _LISTENER.fullmatch(line.strip())
    if not match:
        raise UnexpectedAnswer("ss", line, "a program that listens")
    user = _USER.search(match[3] or "")
    return Listener(match[1], int(match[2]), user[1] if user else "", int(user[2]) if user else 0)


def _reached(line: str) -> tuple[str, int]:
    status, blank, url = line.partition(" ")
    if not blank or not status.isdecimal():
        raise UnexpectedAnswer("curl", line, "an HTTP status and a URL")
    return url, int(status)


def _int(what: str, text: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise UnexpectedAnswer(what, text, "a number") from None
