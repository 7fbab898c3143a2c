"""Checks of the server as a whole: disk and memory, network, and its system."""

from __future__ import annotations

from collections.abc import Iterator

from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.keys import read_participant
from pocqueue.deploy.facts.packages import Remedy
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.preflight.checks import Check, Seen, Wanted, check

#: Free beyond the model: the chain's data and images.
FREE_BYTES = 250_000_000_000
MAX_SKEW_S = 2
_KNOWN_SYSTEMS = {"ubuntu": ("20.04", "22.04", "24.04", "26.04"), "debian": ("11", "12", "13")}


def disk_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    system = seen.system
    need = FREE_BYTES + (wanted.model_bytes or 0)
    yield check(
        "disk, RAM",
        "disk",
        system.free_bytes >= need,
        f"{system.free_bytes / 1e9:.0f} GB free",
        f"{need / 1e9:.0f} GB",
        "Use a larger disk: the chain's data grows.",
    )
    yield check(
        "disk, RAM",
        "inodes",
        system.free_inodes >= 1_000_000,
        f"{system.free_inodes:,} free",
        "1,000,000",
        "Remove small files, or use another disk.",
        warn=True,
    )
    if seen.write_mb_s is not None:
        yield check(
            "disk, RAM",
            "disk-rate",
            seen.write_mb_s >= wanted.min_write_mb_s,
            f"{seen.write_mb_s:.0f} MB/s",
            f"{wanted.min_write_mb_s:.0f} MB/s",
            "A slow disk holds up the chain and the model's start.",
            warn=True,
        )
    if wanted.largest_file_bytes:
        need = 2 * wanted.largest_file_bytes
        yield check(
            "disk, RAM",
            "ram",
            system.memory_bytes >= need,
            f"{system.memory_bytes / 1e9:.0f} GB",
            f"{need / 1e9:.0f} GB, twice the largest file of the model",
            "Use a server with more memory.",
        )
    share = 1 - system.free_memory_bytes / system.memory_bytes
    yield check(
        "disk, RAM",
        "ram-free",
        share < 0.9,
        f"{share:.0%} used",
        "less than 90 %",
        "See `top`: something else runs there.",
        warn=True,
    )


def network_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    reached = dict(seen.system.reached)
    for url in wanted.urls:
        status = reached.get(url)
        # Any answer of theirs: a HEAD is not what they are for.
        is_good = None if status is None else 0 < status < 500
        shown = "not tried" if status is None else f"HTTP {status}" if status else "not reached"
        name = f"reach-{url.split('://', 1)[-1].split('/', 1)[0]}"
        yield check(
            "network",
            name,
            is_good,
            shown,
            f"an answer of {url} to the server",
            "Look at the server's DNS, its routes, and the provider's firewall.",
        )
    if seen.participant is not None:
        yield _participant(seen.participant, wanted.public_key)
    if (status := seen.public_status) is not None:
        yield check(
            "network",
            "public-url",
            0 < status < 500,
            f"HTTP {status}" if status else "not reached",
            "an answer of PUBLIC_URL here",
            "Open port 8000 in the provider's firewall.",
            warn=True,
        )
    skew = seen.system.clock_s - seen.now_s
    yield check(
        "network",
        "clock",
        abs(skew) <= MAX_SKEW_S,
        f"{skew:+.0f} s",
        f"within {MAX_SKEW_S} s of this machine",
        "Set the clocks: `timedatectl set-ntp true`, here or there.",
    )
    if seen.system.is_clock_synced is False:
        yield check(
            "network", "clock-sync", False, "off", "on", "`timedatectl set-ntp true`.", warn=True
        )


def _participant(answer: Answer, public_key: str) -> Check:
    """Say what the network knows of the account, by the rules of the registration."""
    is_good: bool | None
    try:
        known = read_participant(answer.status, answer.text)
    except UnexpectedAnswer:
        is_good, shown = None, answer.shown
        remedy = "Look at it: nothing is registered while it is not understood, nor while the seed does not answer."
    else:
        is_good, shown = known in (None, public_key), known or "not registered yet"
        remedy = "This address has another key there: look at ACCOUNT_PUBKEY and SEED_API_URL."
    wanted = f"an answer about the account, with no other key than {public_key}"
    return check("network", "participant", is_good, shown, wanted, remedy)


def system_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    system = seen.system
    releases = _KNOWN_SYSTEMS.get(system.distribution, ())
    shown = f"{system.distribution or 'not known'} {system.release}".strip()
    known = "; ".join(f"{name} {', '.join(of)}" for name, of in _KNOWN_SYSTEMS.items())
    yield check(
        "system",
        "distribution",
        system.release in releases,
        shown,
        known,
        "It may work; nobody has tried.",
        warn=True,
    )
    yield check(
        "system",
        "machine",
        system.machine == "x86_64",
        system.machine,
        "x86_64",
        "The images are built for x86_64.",
    )
    yield check(
        "system",
        "root",
        system.is_root,
        "root" if system.is_root else "an ordinary user",
        "root, or sudo without a password",
        "Run with --ask-sudo, or allow sudo without one.",
    )
    lock = f"held by {system.apt_pid}" if system.apt_pid else "free"
    yield check(
        "system",
        "apt-lock",
        system.apt_pid is None,
        lock,
        "free",
        "An upgrade runs; a run waits 300 s for it.",
        warn=True,
    )
    yield check(
        "system",
        "packages",
        not system.is_apt_broken,
        "interrupted" if system.is_apt_broken else "whole",
        "whole",
        "`dpkg --configure -a`.",
    )
    yield check(
        "system",
        "reboot",
        not system.needs_reboot,
        "pending" if system.needs_reboot else "none pending",
        "none pending",
        "Start the server anew before it becomes a node.",
        warn=True,
    )
    missing = {"git", "curl", "python3", "flock", "findmnt"} - system.tools
    yield check(
        "system",
        "tools",
        not missing,
        f"without {', '.join(sorted(missing))}" if missing else "there",
        "git, curl, python3, flock, findmnt",
        "Install them, or run with INSTALL=yes.",
        warn=wanted.installs and not missing & {"flock", "findmnt"},
    )
    if seen.todo is not None:
        yield _software(seen, seen.todo, wanted.installs)


def _software(seen: Seen, todo: Remedy, installs: bool) -> Check:
    """Say what a run installs, or what a person has to type before it."""
    is_ours = installs and not todo.by_hand
    typed = "; ".join(todo.commands)
    remedy = "A run installs it." if is_ours else f"{todo.why} Type on the server, as root: {typed}"
    if not installs and not todo.by_hand:
        remedy += " (or run with INSTALL=yes)"
    lacks = ", ".join(seen.lacks)
    return check(
        *("system", "software", not lacks, f"without {lacks}" if lacks else "there"),
        "all that a node needs",
        remedy.strip(),
        warn=is_ours,
    )
