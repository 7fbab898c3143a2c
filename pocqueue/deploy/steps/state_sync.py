"""The block that a new node begins from: one that two servers of the chain agree on, asked from the server; none is built in."""

from __future__ import annotations

import tomllib
from typing import Any

from pocqueue.deploy.engine import Host
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.chain import (
    BlockId,
    Setting,
    Value,
    read_block,
    read_status,
    trusted_block,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.node_files import rpc_servers
from pocqueue.deploy.words import Command

#: Blocks between the newest and the one that is trusted: old enough for both servers to have it.
BEHIND = 1_000


async def state_sync_settings(host: Host, name: str, config: str) -> dict[Setting, Value]:
    """Return the settings of state sync that are wanted of a node without blocks.

    A block that the file has already stays, if two servers agree on it: the network's own start-up script may have chosen it.

    Args:
        host: the server, which asks.
        name: of the step.
        config: text of config.toml.

    Raises:
        StepFailed: a server of the chain is not reached.
        UnexpectedAnswer: the two do not agree.
    """
    if host.conf.state_sync == "off":
        return {("statesync", "enable"): False}
    servers = rpc_servers(host.conf)
    block = _block_of(config)
    if block is None or await _disagreement(host, block):
        block = await _newest_trusted(host, name, servers)
    return {
        ("statesync", "enable"): True,
        ("statesync", "rpc_servers"): ",".join(servers),
        ("statesync", "trust_height"): block.height,
        ("statesync", "trust_hash"): block.hash_hex,
    }


async def trust_problem(host: Host, config: str) -> str:
    """Return what speaks against the block that a node without blocks begins from; empty: nothing.

    Args:
        host: the server, which asks.
        config: text of config.toml, which the node may have changed when it started.
    """
    if host.conf.state_sync == "off":
        return ""
    block = _block_of(config)
    if block is None:
        return "config.toml has no block that the node could begin from: run again"
    return await _disagreement(host, block)


async def _disagreement(host: Host, block: BlockId) -> str:
    for url in rpc_servers(host.conf):
        said = await host.look(_get(f"{url}block?height={block.height}"))
        try:
            found = read_block(said.stdout) if said.exit_code == 0 else None
        except UnexpectedAnswer:
            found = None
        if found != block:
            what = f"has {found.hash_hex}" if found else "does not say that it has it"
            return f"the node begins from block {block.height} {block.hash_hex}, but {url} {what}"
    return ""


async def _newest_trusted(host: Host, name: str, servers: tuple[str, str]) -> BlockId:
    latest = read_status(await _asked(host, name, f"{servers[0]}status")).height
    height = max(latest - BEHIND, 1)
    first, second = [
        read_block(await _asked(host, name, f"{url}block?height={height}")) for url in servers
    ]
    return trusted_block(first, second)


async def _asked(host: Host, name: str, url: str) -> str:
    said = await host.look(_get(url))
    if said.exit_code != 0 or said.is_cut:
        raise StepFailed(
            name,
            f"the server does not get {url}, and a block is trusted only where two servers of the chain agree on it. Wait until both "
            "answer, or begin without a snapshot: STATE_SYNC=off.",
            exit_code_there=said.exit_code,
            tail=said.tail,
        )
    return said.stdout


def _get(url: str) -> Command:
    return Command(("curl", "-fsS", "--max-time", "20", "--", url), timeout_s=40)


def _block_of(config: str) -> BlockId | None:
    """Return the block that state sync begins from by a config.toml; None: none, or it is off."""
    try:
        found: Any = tomllib.loads(config).get("statesync")
    except tomllib.TOMLDecodeError:
        return None
    if not isinstance(found, dict) or found.get("enable") is not True:
        return None
    height, hash_hex = found.get("trust_height"), found.get("trust_hash")
    if type(height) is not int or height < 1 or not isinstance(hash_hex, str) or not hash_hex:
        return None
    return BlockId(height, hash_hex.upper())
