"""What no run does by itself, since too much hangs on it: the chain's data moved aside, so that the node loads them anew."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pocqueue.deploy.begin import Options, begun
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host, Plan, run_steps
from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.facts.docker import DockerFacts, docker_facts, read_docker
from pocqueue.deploy.facts.parts import UnexpectedAnswer, read_parts
from pocqueue.deploy.folder import make_folders
from pocqueue.deploy.lock import local_lock, server_lock, who_we_are
from pocqueue.deploy.log import Log, local_now
from pocqueue.deploy.steps.keys_backup import KeysBackup
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.steps.services import UPSTREAM_FILES
from pocqueue.deploy.words import Command

#: Of the chain.
NODE = "node"


@dataclass(frozen=True, slots=True)
class ChainData:
    """The chain's data as they lie on the server.

    Attributes:
        folder: of the compose files.
        is_aside: the old ones have been moved, and there is a new folder.
        left: name of the folder that a run which was cut has moved them to, while there is no new one; empty: none.
        size_bytes: of what is in place.
        free_bytes: beside it.
        docker: the engine, and what runs.
    """

    folder: str
    is_aside: bool
    left: str
    size_bytes: int
    free_bytes: int
    docker: DockerFacts


@dataclass(frozen=True, slots=True)
class ChainDataAside:
    """The chain's data are aside, and the node runs with an empty folder.

    Args:
        aside: name of the folder that they are moved to.
        settle_s: seconds that the node may take until it counts as running.
        every_s: seconds between two looks.
    """

    aside: str
    settle_s: float = 120.0
    every_s: float = 5.0
    phase: int = 5
    name: str = "chain data aside"

    async def look(self, host: Host) -> ChainData:
        """Read the folders, and whether the node runs."""
        await need_mounted(host)
        folder = compose_folder(host.conf)
        command = Command(
            ("look", folder, self.aside), script="chain_data", sudo=True, timeout_s=120
        )
        said = await looked(host, self.name, command, needs=f"{folder}/.inference")
        parts = read_parts(said, "aside", "left", "size", "free")
        size, free = parts["size"].wanted().text.strip(), parts["free"].wanted().text.strip()
        if not free.isdecimal() or (size and not size.isdecimal()):
            raise UnexpectedAnswer("du and df", f"{size} {free}", "two numbers")
        docker = await looked(host, self.name, docker_facts(folder, UPSTREAM_FILES))
        is_aside = parts["aside"].text.strip() == "there"
        left = parts["left"].text.strip()
        return ChainData(folder, is_aside, left, int(size or 0), int(free), read_docker(docker))

    def told(self, facts: ChainData) -> str:
        """Say where they are."""
        node = facts.docker.service(NODE)
        where = (
            f"old ones in {self.aside}"
            if facts.is_aside
            else f"none in place, a run that was cut has moved them to {facts.left}"
            if facts.left
            else f"{facts.size_bytes / 1e9:.1f} GB in place"
        )
        return f"{facts.folder}/.inference: {where}; {node.shown if node else 'node: none'}"

    def is_done(self, facts: ChainData) -> bool:
        """Say whether they are aside, and the node runs."""
        node = facts.docker.service(NODE)
        return facts.is_aside and node is not None and node.is_settled

    def plan(self, facts: ChainData) -> Plan:
        """Stop the node, move them, start it."""
        words = (facts.folder, "-f", UPSTREAM_FILES[0])
        stop = Command((*words, "stop", NODE), script="compose", sudo=True, timeout_s=120)
        move = Command(("move", facts.folder, self.aside), script="chain_data", sudo=True)
        start = Command(
            (*words, "up", "-d", "--no-deps", NODE), script="compose", sudo=True, timeout_s=300
        )
        return Plan(
            f"{facts.size_bytes / 1e9:.1f} GB of {facts.folder}/.inference/data to {self.aside} beside it",
            (start,) if facts.is_aside else (stop, move, start),
            wait_s=self.settle_s,
            every_s=self.every_s,
        )


async def repair(conf: Conf, out: Log, options: Options) -> None:
    """Move the chain's data aside after KEY_NAME was typed; keys are backed up first, and nothing is removed.

    Raises:
        BadUsage: nobody is there to type it.
        DeployError: why it stopped.
    """
    if options.ask is None:
        raise BadUsage("--reset-chain-data asks for KEY_NAME to be typed: run it in a terminal.")
    aside = f"data.pocqueue-{local_now():%Y%m%d-%H%M%S}"
    step = ChainDataAside(aside)
    make_folders(conf)
    with local_lock(conf.folder):
        async with begun(conf, out, options) as host:
            facts = await step.look(host)
            if facts.left:
                # What that run began is ended, by its name.
                aside = facts.left
                step = ChainDataAside(aside)
            out.warn(
                f"{step.told(facts)}. The node stops, the data go to {aside} beside it, and the chain is loaded anew, which takes hours "
                f"or a snapshot; {facts.free_bytes / 1e9:.0f} GB are free for it. Keys and wallets stay."
            )
            question = f"{conf.key_name}: type KEY_NAME to move the chain's data aside: "
            if (await options.asked(question)).strip() != conf.key_name:
                out.info("Another name was typed; nothing was done.")
                return
            async with server_lock(
                host.connection, who_we_are(local_now()), state_dir=options.state_dir
            ):
                # Much may have happened while the question stood.
                host.memory.clear()
                await run_steps(
                    host,
                    (KeysBackup(step.phase), step),
                    now=lambda: f"{local_now():%Y-%m-%d %H:%M:%S}",
                )
    again = f"pocqueue deploy run {shlex.quote(str(conf.path))} --from 5"
    out.info(f"Go on with: {again}. When the node is verified, {aside} may be removed by hand.")
