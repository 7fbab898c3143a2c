"""What a machine says of itself, as the store takes it."""

from __future__ import annotations

import re

from pocqueue.hosts.records import Gpu, HostFacts
from pocqueue.hosts.wire import HostGpu, Register, Resume

_VERSION = re.compile(r"\d{1,6}(?:\.\d{1,6}){0,3}", re.ASCII)
_MEMORY = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)\s*([GMgm])(?:i?[Bb])?")


def facts_of(message: Register | Resume) -> HostFacts:
    """Return the facts of an introduction. GPUs that name no uuid get their number, two of the same become one."""
    gpus: dict[str, Gpu] = {}
    for number, one in enumerate(message.host_info.gpus):
        gpu = _gpu(number, one)
        gpus.setdefault(gpu.uuid, gpu)
    return HostFacts(
        hostname=message.host_info.hostname,
        os=message.host_info.os,
        gpus=tuple(gpus.values()),
        protocol=message.protocol,
        agent_version=message.agent_version,
        isolation=message.isolation,
        kinds=message.kinds,
    )


def is_older(version: str | None, than: str) -> bool:
    """Say whether an agent is of an older version; of what is no version nothing is known.

    >>> is_older("0.9.1", "0.10.0"), is_older("1.0", "0.10.0"), is_older("unknown", "0.10.0")
    (True, False, False)
    """
    found = _VERSION.match(version or "")
    mine = _VERSION.match(than)
    return bool(found and mine) and _numbers(found) < _numbers(mine)


def vram_mib(memory: str) -> int | None:
    """Read a size of memory as people write it; None: it is none.

    >>> vram_mib("24GB"), vram_mib("24564 MiB"), vram_mib("lots")
    (24576, 24564, None)
    """
    found = _MEMORY.fullmatch(memory.strip())
    if found is None:
        return None
    return round(float(found[1]) * (1024 if found[2] in "Gg" else 1))


def _numbers(version: re.Match[str] | None) -> list[int]:
    return [] if version is None else [int(part) for part in version[0].split(".")]


def _gpu(number: int, one: HostGpu) -> Gpu:
    return Gpu(
        uuid=one.uuid or f"index-{number}",
        name=one.name,
        vram_mib=vram_mib(one.memory) if one.vram_mib is None else one.vram_mib,
        compute_capability=one.compute_capability,
        healthy=one.healthy,
        reason=one.reason,
    )
