"""The chain's node set up: its peers, what it keeps of the chain, and the block that it begins from; edited line by line.

Nothing of its data is ever removed here. A file that was edited is kept beside, and the node is started anew with the new one.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from dataclasses import dataclass

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host, NotYet, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.chain import Setting, Value, differences, edited
from pocqueue.deploy.facts.chain_node import FILES, SETTINGS, NodeFacts, node_facts, read_node
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.steps.state_sync import state_sync_settings, trust_problem
from pocqueue.deploy.words import Command

_JOB = "5-sync"
#: How often a node that runs is asked whether it has blocks, and seconds between: it was started just now, or is busy.
_ASKS, _ASK_EVERY_S = 20, 3.0


def edited_file(host: Host) -> str:
    """Return our file on the server whose time is that of the last edit."""
    return f"{host.state_dir}/settings-edited"


async def look_at_node(host: Host, name: str, *, anew: bool = False) -> NodeFacts:
    """Return how the node stands.

    Args:
        host: the server.
        name: of the step.
        anew: as of `Host.look`.

    Raises:
        NotYet: it has no settings yet: it makes them when it first runs.
        StepFailed: it cannot be looked at, or a settings file is none.
    """
    await need_mounted(host)
    folder = compose_folder(host.conf)
    waited = f"{host.state_dir}/jobs/{_JOB}/rc"
    command = node_facts(folder, edited_file(host), waited)
    needs = f"{folder}/docker-compose.yml"
    facts = read_node(await looked(host, name, command, needs=needs, anew=anew))
    for file, kind in facts.kinds.items():
        raise StepFailed(
            name, f"{folder}/{SETTINGS}/{file} is a {kind}: look at it and move it away."
        )
    if set(facts.texts) != set(FILES):
        raise NotYet(f"until the node has made {folder}/{SETTINGS}, when it first runs")
    return facts


async def look_for_blocks(host: Host, name: str) -> NodeFacts:
    """Return how the node stands, once it is known whether it has blocks.

    Args:
        host: the server.
        name: of the step.

    Raises:
        NotYet: as `look_at_node`.
        StepFailed: the same; or it does not answer, and may have blocks: what a new node needs is not for one that has.
    """
    for ask in range(_ASKS):
        facts = await look_at_node(host, name, anew=ask > 0)
        if facts.has_blocks is not None:
            return facts
        if facts.started_s is None:
            break
        await asyncio.sleep(_ASK_EVERY_S)
    raise StepFailed(
        name,
        f"the node does not answer at /status, and {compose_folder(host.conf)}/.inference/data may have blocks: nothing is concluded "
        "from that. `docker compose logs node` there says why; run again when it answers.",
    )


@dataclass(frozen=True, slots=True)
class SettingsState:
    """A settings file, and what is wanted of it.

    Attributes:
        folder: of it.
        text: its own.
        wanted: settings with their values.
        edited: our file whose time is that of the last edit.
    """

    folder: str
    text: str
    wanted: dict[Setting, Value]
    edited: str


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """A settings file of the node has the values that are wanted.

    Args:
        file: its name.
    """

    file: str
    phase: int = 5

    @property
    def name(self) -> str:
        """Return its name."""
        return self.file

    async def look(self, host: Host) -> SettingsState:
        """Read the file; ask two servers of the chain, where the node has to begin from a snapshot."""
        conf = host.conf
        if self.file == "app.toml":
            text = (await look_at_node(host, self.name)).texts[self.file]
            wanted = pruning(conf)
        else:
            facts = await look_for_blocks(host, self.name)
            text, wanted = facts.texts[self.file], peers(conf)
            # A node that has blocks begins from no snapshot, whatever its settings say.
            if not facts.has_blocks:
                wanted |= await state_sync_settings(host, self.name, text)
        folder = f"{compose_folder(conf)}/{SETTINGS}"
        return SettingsState(folder, text, wanted, edited_file(host))

    def told(self, facts: SettingsState) -> str:
        """Say how many settings are as wanted."""
        num = len(facts.wanted) - len(differences(facts.text, facts.wanted))
        return f"{num} of {len(facts.wanted)} settings as wanted"

    def is_done(self, facts: SettingsState) -> bool:
        """Say whether all are."""
        return not differences(facts.text, facts.wanted)

    def plan(self, facts: SettingsState) -> Plan:
        """Put a file with those lines edited in place of the one that is there, which is kept beside it.

        Raises:
            UnexpectedAnswer: the file is in a form that cannot be edited by lines.
        """
        text = edited(facts.text, facts.wanted)
        before, after = (hashlib.sha256(each.encode()).hexdigest() for each in (facts.text, text))
        names = ", ".join(name for _, name in differences(facts.text, facts.wanted))
        command = Command(
            (facts.folder, self.file, before, after, facts.edited),
            (text,),
            script="settings_file",
            sudo=True,
            timeout_s=60,
        )
        diff = difflib.unified_diff(
            facts.text.splitlines(), text.splitlines(), self.file, self.file, lineterm="", n=0
        )
        what = f"{facts.folder}/{self.file}: {names}, backup {self.file}.pocqueue-{before[:12]}…"
        return Plan(what, (command,), diff="\n".join(diff))


def peers(conf: Conf) -> dict[Setting, Value]:
    """Return the settings of its peers; none where the conf names none."""
    if not conf.persistent_peers:
        return {}
    return {("p2p", "persistent_peers"): ",".join(conf.persistent_peers)}


def pruning(conf: Conf) -> dict[Setting, Value]:
    """Return the settings of what it keeps; app.toml has numbers as texts."""
    settings: dict[Setting, Value] = {("", "pruning"): conf.pruning_strategy}
    if conf.pruning_strategy == "custom":
        settings["", "pruning-keep-recent"] = str(conf.pruning_keep_recent)
        settings["", "pruning-interval"] = str(conf.pruning_interval)
    return settings


@dataclass(frozen=True, slots=True)
class NodeState:
    """The node, where its compose files are, and what speaks against the block that it begins from."""

    folder: str
    node: NodeFacts
    trust_problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeRestarted:
    """The node runs with its settings as they were last edited."""

    phase: int = 5
    name: str = "node with its settings"

    async def look(self, host: Host) -> NodeState:
        """Read when it was started, and when its settings were edited."""
        return NodeState(compose_folder(host.conf), await look_at_node(host, self.name))

    def told(self, facts: NodeState) -> str:
        """Say whether it was started since."""
        if facts.node.started_s is None:
            return "does not run"
        return (
            "runs with them" if facts.node.has_settings else "was started before they were edited"
        )

    def is_done(self, facts: NodeState) -> bool:
        """Say whether it was started since."""
        return facts.node.started_s is not None and facts.node.has_settings

    def plan(self, facts: NodeState) -> Plan:
        """Start it anew."""
        command = Command(
            (facts.folder, "restart", "node"), script="compose", sudo=True, timeout_s=120
        )
        return Plan("docker compose restart node", (command,))


@dataclass(frozen=True, slots=True)
class NodeSynced:
    """The node has caught up with the network, or was waited for as long as is reasonable.

    Args:
        tries: how often it is looked at.
        every_s: seconds between.
    """

    tries: int = 50
    every_s: float = 30.0
    phase: int = 5
    name: str = "sync of the chain"

    async def look(self, host: Host) -> NodeState:
        """Ask it how far it is; before its first block, whether the one that it begins from is to be trusted."""
        facts = await look_for_blocks(host, self.name)
        problem = ""
        if not facts.has_blocks:
            problem = await trust_problem(host, facts.texts["config.toml"])
        return NodeState(compose_folder(host.conf), facts, problem)

    def told(self, facts: NodeState) -> str:
        """Say how far it is."""
        if facts.trust_problem:
            return facts.trust_problem
        if facts.node.status is None:
            return "it does not answer yet"
        how = "caught up" if facts.node.is_synced else "catching up"
        return f"height {facts.node.height}, {how}"

    def is_done(self, facts: NodeState) -> bool:
        """Say whether it has, or was waited for since it was started."""
        if facts.trust_problem:
            return False
        return facts.node.is_synced or facts.node.was_waited_for

    def warning(self, facts: NodeState) -> str:
        """Say that it goes on."""
        if facts.node.is_synced:
            return ""
        return (
            "the node still catches up; it goes on by itself, and phase 7 says whether it does. "
            "Nothing of its data is removed for that."
        )

    def plan(self, facts: NodeState) -> Plan:
        """Wait for it.

        Raises:
            StepFailed: the block that it begins from is not to be trusted.
        """
        if facts.trust_problem:
            raise StepFailed(self.name, facts.trust_problem)
        command = Command(
            (facts.folder, str(self.tries), f"{self.every_s:g}"),
            script="wait_sync",
            sudo=True,
            timeout_s=self.tries * (self.every_s + 15) + 60,
        )
        return Plan(
            f"wait for it, {self.tries} looks {self.every_s:g} s apart at most",
            (Job(_JOB, command),),
        )
