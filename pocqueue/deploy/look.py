"""The look at a whole server before anything is changed: reads what the checks of `preflight` judge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import replace

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.disk import DiskFacts, disk_facts, read_disk
from pocqueue.deploy.facts.gpu import gpu_facts, read_gpus
from pocqueue.deploy.facts.http import http_facts, read_answers
from pocqueue.deploy.facts.image import computing_image
from pocqueue.deploy.facts.packages import remedy
from pocqueue.deploy.facts.system import SystemFacts, read_system, system_facts
from pocqueue.deploy.facts.tried import read_tried, tried_facts
from pocqueue.deploy.facts.volume import is_mounted
from pocqueue.deploy.log import Log
from pocqueue.deploy.node_files import num_gpus
from pocqueue.deploy.outside import Outside
from pocqueue.deploy.preflight import Check, Seen, Verdict, Wanted, failures, preflight
from pocqueue.deploy.steps.all_services import public_ports
from pocqueue.deploy.steps.model import model_need
from pocqueue.deploy.steps.packages import read_software
from pocqueue.deploy.steps.registration import participant_url
from pocqueue.deploy.words import Command
from pocqueue.words import counted

#: Where models and images come from.
_URLS = ("https://huggingface.co", "https://ghcr.io")


def wanted_of(conf: Conf) -> Wanted:
    """Return what a conf needs of a server."""
    urls = (conf.seed_api_url, *_URLS)
    return Wanted(
        num_gpus=num_gpus(conf),
        urls=urls,
        public_key=conf.account_pubkey,
        public_ports=public_ports(conf),
        installs=conf.install == "yes",
    )


async def look_at_server(host: Host, outside: Outside) -> tuple[Check, ...]:
    """Return the table of checks.

    Args:
        host: is read only.
        outside: looks at it as the world does, once something listens there.

    Raises:
        StepFailed: something cannot be read.
        UnexpectedAnswer: something is not understood.
    """
    conf, wanted = host.conf, wanted_of(host.conf)
    seed = participant_url(conf.seed_api_url, conf.account_pubkey)
    system, gpus, software, disk, need, answered = await asyncio.gather(
        _read(host, system_facts(conf.volume_mount, wanted.urls)),
        _read(host, gpu_facts()),
        read_software(host),
        _read(host, disk_facts(conf.volume_device, conf.volume_mount, samples=False)),
        model_need(host),
        _read(host, http_facts((seed,))),
    )
    facts = read_system(system)
    volume = read_disk(conf.volume_device, conf.volume_mount, disk)
    mount = conf.volume_mount if is_mounted(volume, conf.volume_mount) else ""
    tried, status = await asyncio.gather(
        _read(host, tried_facts(mount)), _public_status(facts, conf, outside)
    )
    tries = read_tried(tried)
    wanted = replace(wanted, image=computing_image(software.docker.images))
    if need is not None:
        wanted = replace(wanted, model_bytes=need.num_bytes, largest_file_bytes=need.largest_bytes)
    if (size := _size_to_come(volume, conf.volume_mount)) is not None:
        facts = replace(facts, free_bytes=size)
    # What that took on a busy server is no error of its clock.
    here_s = facts.clock_s - await skew_s(host)
    lacks = software.missing
    todo = remedy(software.docker, software.packages) if lacks else None
    seen = Seen(
        facts,
        read_gpus(gpus),
        software.docker,
        here_s,
        container_gpus=tries.container_gpus,
        container_said=tries.container_said,
        write_mb_s=tries.write_mb_s,
        participant=read_answers(answered, (seed,))[seed],
        public_status=status,
        lacks=lacks,
        todo=todo,
    )
    return preflight(seen, wanted)


async def _public_status(facts: SystemFacts, conf: Conf, outside: Outside) -> int | None:
    """Return what PUBLIC_URL answers here; None: nothing listens there yet."""
    if conf.api_port not in {each.port for each in facts.listeners or ()}:
        return None
    return (await outside.get(f"{conf.public_url.rstrip('/')}/")).status


async def skew_s(host: Host) -> float:
    """Return by how much the server's clock is before this machine's.

    Args:
        host: is read only.

    Raises:
        StepFailed: its clock cannot be read.
    """
    before_s = time.time()
    said = await _read(host, Command(("date", "+%s.%N")))
    after_s = time.time()
    try:
        there_s = float(said)
    except ValueError:
        raise StepFailed("preflight", f"`date` said {said[:80]!r}.") from None
    # Within the time that the question took, all is possible.
    return min(there_s - before_s, 0) if there_s < after_s else there_s - after_s


def _size_to_come(volume: DiskFacts, mount: str) -> int | None:
    """Return the size of the disk that is not mounted yet; what is free there now is the system's."""
    if volume.device is None or is_mounted(volume, mount):
        return None
    return volume.device.size_bytes


async def _read(host: Host, command: Command) -> str:
    found = await host.connection.look(command)
    if found.exit_code != 0 or found.is_cut:
        raise StepFailed(
            "preflight",
            f"{command.shown()} cannot be read.",
            exit_code_there=found.exit_code,
            tail=found.tail,
        )
    return found.stdout


def write_checks(out: Log, checks: Collection[Check], ignored: Collection[str] = ()) -> None:
    """Write a table into the log, each line with the level of what was found.

    Args:
        out: the log.
        checks: the table.
        ignored: names of checks that may fail.
    """
    for check in checks:
        if check.verdict is Verdict.PASS:
            out.ok(str(check))
        elif check.verdict is Verdict.WARN:
            out.warn(str(check))
        elif check.name in ignored:
            out.warn(f"{check} (ignored by --ignore {check.name})")
        else:
            out.error(str(check))


def show_checks(out: Log, checks: Collection[Check], ignored: Collection[str] = ()) -> None:
    """Write the table down.

    Raises:
        StepFailed: a check failed that is not ignored.
    """
    write_checks(out, checks, ignored)
    if unknown := set(ignored) - {check.name for check in checks}:
        out.warn(f"--ignore names no check: {', '.join(sorted(unknown))}")
    if failed := failures(checks, ignored):
        names = ", ".join(check.name for check in failed)
        raise StepFailed(
            "preflight",
            f"{counted(len(failed), 'check')} failed: {names}. Nothing was changed. Mend them, or add --ignore NAME for each that "
            "you know better.",
        )
