"""Phase 7: reads what the checks of `verification` judge, and writes down what came of them. The server stays as it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host, section
from pocqueue.deploy.errors import DeployError, VerificationFailed
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.facts.chain import read_status
from pocqueue.deploy.facts.docker import DockerFacts, docker_facts, read_docker
from pocqueue.deploy.facts.http import Answer, http_facts, read_answers
from pocqueue.deploy.facts.image import MLNODE
from pocqueue.deploy.facts.node import (
    HEALTH_URL,
    MODELS_URL,
    NODES_URL,
    SETUP_URL,
    Inside,
    inside_facts,
    read_inside,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer, read_parts
from pocqueue.deploy.facts.system import read_system, system_facts
from pocqueue.deploy.look import skew_s, write_checks
from pocqueue.deploy.node_files import num_gpus
from pocqueue.deploy.outside import Outside
from pocqueue.deploy.preflight import Check, failures
from pocqueue.deploy.steps.all_services import ALL_FILES
from pocqueue.deploy.steps.mounted import compose_folder, looked
from pocqueue.deploy.steps.registration import participant_url
from pocqueue.deploy.verification import SeenNode, WantedNode, verification
from pocqueue.deploy.verification.seen import INNER_PORTS
from pocqueue.deploy.words import Command
from pocqueue.files import replace_file

PHASE = 7
#: Between two looks at a chain that catches up.
GROWTH_S = 15.0
#: The shortest time that a growth of the disk is told from.
MIN_GROWTH_S = 3_600
#: The longest: it is begun anew then.
_KEEP_GROWTH_S = 7 * 86_400
_NAME = "verification"


async def look_at_node(
    host: Host, outside: Outside, *, growth_s: float = GROWTH_S
) -> tuple[Check, ...]:
    """Return the table of checks of a node.

    Args:
        host: is read only.
        outside: sees the server as the world does.
        growth_s: seconds between two looks at a chain that catches up.

    Raises:
        DeployError: something cannot be read at all.
    """
    conf = host.conf
    # As it is now, whatever steps have seen.
    host.memory.clear()
    seed = participant_url(conf.seed_api_url, conf.account_pubkey)
    urls = (HEALTH_URL, MODELS_URL, NODES_URL, SETUP_URL, seed)
    (docker, inside), answered, system, skew, chain, world = await asyncio.gather(
        _containers(host),
        looked(host, _NAME, http_facts(urls)),
        looked(host, _NAME, system_facts(conf.volume_mount)),
        skew_s(host),
        _chain(host),
        _world(outside, conf),
    )
    answers = read_answers(answered, urls)
    free_bytes = read_system(system).free_bytes
    seen = SeenNode(
        names=docker.names,
        services=docker.services,
        participant=answers[seed],
        chain=chain,
        chain_later=await _chain_later(host, chain, growth_s),
        answers=answers,
        inside=inside,
        page=world.page,
        open_ports=world.open_ports,
        certificate_days=world.certificate_days,
        skew_s=skew,
        free_bytes=free_bytes,
        daily_bytes=_daily_bytes(host, free_bytes, time.time()),
    )
    return verification(seen, _wanted(conf))


@dataclass(frozen=True, slots=True)
class _World:
    """What the world sees."""

    page: Answer
    open_ports: frozenset[int]
    certificate_days: float | None


async def _world(outside: Outside, conf: Conf) -> _World:
    """Look from outside, at all at once."""
    page, *are_open = await asyncio.gather(
        outside.get(f"{conf.public_url.rstrip('/')}/"),
        *(outside.is_open(conf.server_ip, port) for port in INNER_PORTS),
    )
    assert isinstance(page, Answer)
    has_certificate = conf.public_url.startswith("https:")
    return _World(
        page,
        frozenset(port for port, is_open in zip(INNER_PORTS, are_open, strict=True) if is_open),
        await outside.certificate_days(conf.public_url) if has_certificate else None,
    )


async def _containers(host: Host) -> tuple[DockerFacts, Inside | None]:
    """Look at the services, and into the one that has the GPUs, by its image: its name is another one in every release."""
    folder = compose_folder(host.conf)
    docker = read_docker(await looked(host, _NAME, docker_facts(folder, ALL_FILES)))
    running = [service for service in docker.by_image(MLNODE) if service.state == "running"]
    if not running:
        return docker, None
    command = inside_facts(folder, running[0].name, ALL_FILES)
    return docker, read_inside(await looked(host, _NAME, command))


async def _chain(host: Host, *, anew: bool = False) -> str:
    """Return what the chain's node says of itself to the server; empty: it does not answer."""
    command = Command((compose_folder(host.conf),), script="node_status", sudo=True)
    status = read_parts(await looked(host, _NAME, command, anew=anew), "status")["status"]
    return status.text if status.exit_code == 0 else ""


async def _chain_later(host: Host, chain: str, growth_s: float) -> str:
    """Ask a chain once more that catches up; empty: it needs no second look."""
    try:
        if not read_status(chain).is_catching_up:
            return ""
    except UnexpectedAnswer:
        return ""
    await asyncio.sleep(growth_s)
    return await _chain(host, anew=True)


def _wanted(conf: Conf) -> WantedNode:
    return WantedNode(
        address=account_address(conf.account_pubkey),
        public_key=conf.account_pubkey,
        num_gpus=num_gpus(conf),
        model=conf.model_name,
        public_url=conf.public_url.rstrip("/"),
    )


def _daily_bytes(host: Host, free_bytes: int, now_s: float) -> float | None:
    """Return by how much the disk fills a day, since an earlier look; None: none is old enough."""
    noted = host.journal.get("disk")
    passed_s = now_s - noted["at_s"] if noted else 0
    if not noted or passed_s > _KEEP_GROWTH_S:
        host.journal.record(disk={"at_s": round(now_s), "free_bytes": free_bytes})
    if not noted or passed_s < MIN_GROWTH_S:
        return None
    return float((noted["free_bytes"] - free_bytes) / passed_s * 86_400)


async def verify_node(host: Host, outside: Outside, *, growth_s: float = GROWTH_S) -> None:
    """Look at a node, show the table, and write it to ``verification.txt``.

    Args:
        host: is read only.
        outside: sees the server as the world does.
        growth_s: seconds between two looks at a chain that catches up.

    Raises:
        VerificationFailed: a required check failed; what was seen is written down all the same.
        DeployError: the node cannot be looked at.
    """
    section(host.out, PHASE)
    host.out.check("Verifying the node...")
    path = host.conf.folder / "verification.txt"
    # What an earlier look has found says nothing of this one.
    path.unlink(missing_ok=True)
    checks = await look_at_node(host, outside, growth_s=growth_s)
    text = "".join(f"{host.out.redactor(check.line)}\n" for check in checks)
    try:
        replace_file(path, text.encode())
    except OSError as exc:
        raise DeployError(f"{path} cannot be written ({exc.strerror}): mend it.") from None
    write_checks(host.out, checks)
    if failed := failures(checks):
        raise VerificationFailed([check.name for check in failed])
