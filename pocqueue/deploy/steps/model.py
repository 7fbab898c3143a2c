"""The model on the server: the hub's program in a venv of ours, and the whole model, proved by its hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.model import (
    HubFile,
    ModelFacts,
    bytes_to_load,
    cache_folder,
    lacks_space,
    model_facts,
    read_listing,
    read_model,
    read_revision,
    to_load,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import looked, need_mounted
from pocqueue.deploy.words import Command
from pocqueue.words import counted

HUB = "https://huggingface.co"
#: Of huggingface_hub on the server.
HUB_VERSION = "2.4.0"
#: Seconds without growth after which a download is begun anew.
STALL_S = 300


def hub_program(mount: str) -> str:
    """Return the path of the hub's program on a server."""
    return f"{mount}/.pocqueue/hub-{HUB_VERSION}/bin/hf"


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it says of its version; empty: it does not run."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class HubProgram:
    """The hub's program is there, in a venv of ours."""

    phase: int = 2
    name: str = "hub program"

    async def look(self, host: Host) -> Program:
        """Ask it for its version."""
        await need_mounted(host)
        path = hub_program(host.conf.volume_mount)
        said = await host.look(Command((path, "version"), sudo=True))
        return Program(path, said.stdout.strip()[:80] if said.exit_code == 0 else "")

    def told(self, facts: Program) -> str:
        """Say which it is."""
        return f"{facts.path}: {facts.version or 'none'}"

    def is_done(self, facts: Program) -> bool:
        """Say whether it is the wanted version."""
        return facts.version.split()[-1:] == [HUB_VERSION]

    def plan(self, facts: Program) -> Plan:
        """Make the venv."""
        folder = facts.path.removesuffix("/bin/hf")
        command = Command((folder, HUB_VERSION), script="hub_tool", sudo=True, timeout_s=300)
        return Plan(f"huggingface_hub {HUB_VERSION} in {folder}", (Job("2-hub", command),))


@dataclass(frozen=True, slots=True)
class ModelState:
    """The model as it is, and as the hub has it."""

    model: str
    #: As the conf names it, or ``main``.
    asked: str
    revision: str
    home: str
    mount: str
    cache: ModelFacts
    files: tuple[HubFile, ...]

    @property
    def wanted(self) -> dict[str, str]:
        """Return the files that are to be loaded, each with the reason."""
        return to_load(self.cache, self.files)


async def _loaded_before(host: Host) -> str:
    """Return the revision that the cache has as its newest: a run from another machine found it out; empty: none."""
    conf = host.conf
    path = f"{conf.hf_home}/hub/{cache_folder(conf.model_name)}/refs/main"
    said = await host.look(Command(("cat", "--", path), sudo=True))
    found = said.stdout.strip()
    return found if said.exit_code == 0 and re.fullmatch(r"[0-9a-f]{40}", found) else ""


async def listing(host: Host, name: str) -> tuple[str, tuple[HubFile, ...]]:
    """Return the revision that is wanted and its files: what was found out once, or what the hub says now.

    Args:
        host: is read only; asks the hub.
        name: of the step.

    Raises:
        StepFailed, UnexpectedAnswer: the hub does not say it.
    """
    conf, noted = host.conf, host.journal.get("model") or {}
    if (noted.get("name"), noted.get("asked")) == (conf.model_name, conf.model_revision or "main"):
        return str(noted["revision"]), tuple(HubFile(*file) for file in noted["files"])
    at = conf.model_revision or await _loaded_before(host) or "main"
    url = f"{HUB}/api/models/{conf.model_name}/revision/{at}?blobs=true"
    command = Command(("curl", "-fsSL", "--max-time", "30", url), timeout_s=60)
    text = await looked(host, name, command)
    return read_revision(text), read_listing(text)


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """What the model takes of a server.

    Attributes:
        num_bytes: that are still to be loaded.
        largest_bytes: of its largest file.
    """

    num_bytes: int
    largest_bytes: int


async def model_need(host: Host) -> ModelNeed | None:
    """Return what the model takes; None: the hub does not say.

    Args:
        host: is read only.
    """
    try:
        commit, files = await listing(host, "model")
        conf = host.conf
        found = await looked(host, "model", model_facts(conf.hf_home, conf.model_name, commit))
        largest = max((file.size_bytes for file in files), default=0)
        return ModelNeed(bytes_to_load(read_model(found), files), largest)
    except (StepFailed, UnexpectedAnswer):
        # That the hub is not reached is a check of its own.
        return None


@dataclass(frozen=True, slots=True)
class Model:
    """The whole model is there, and every content has been hashed.

    Args:
        stall_s: seconds without growth after which a download is begun anew.
    """

    stall_s: int = STALL_S
    phase: int = 2
    name: str = "model"

    async def look(self, host: Host) -> ModelState:
        """Read the cache; ask the hub once what the model has."""
        await need_mounted(host)
        conf = host.conf
        revision = conf.model_revision or "main"
        commit, files = await listing(host, self.name)
        found = await looked(host, self.name, model_facts(conf.hf_home, conf.model_name, commit))
        return ModelState(
            conf.model_name,
            revision,
            commit,
            conf.hf_home,
            conf.volume_mount,
            read_model(found),
            files,
        )

    def told(self, facts: ModelState) -> str:
        """Say how much of it is there."""
        if wanted := facts.wanted:
            size = bytes_to_load(facts.cache, facts.files) / 1e9
            return f"{counted(len(wanted), 'file')} to load, {size:.1f} GB"
        proved = (
            "every content is what it is named by" if facts.cache.is_verified else "not proved yet"
        )
        return (
            f"{facts.model} at {facts.revision[:12]}, {counted(len(facts.files), 'file')}, {proved}"
        )

    def is_done(self, facts: ModelState) -> bool:
        """Say whether all of it is there and proved."""
        return not facts.cache.outside and facts.cache.is_verified and not facts.wanted

    def plan(self, facts: ModelState) -> Plan:
        """Load what is missing, then hash everything.

        Raises:
            StepFailed: there is too little space, or a folder leads elsewhere.
        """
        cache = facts.cache
        if cache.home != facts.home or cache.outside:
            where = ", ".join(cache.outside[:5]) or facts.home
            raise StepFailed(
                self.name,
                f"{where}: leads out of {facts.home}, and a link may fill another disk, or overwrite what is there. "
                f"Make it a folder or a file of {facts.mount}, or remove it.",
            )
        missing = bytes_to_load(cache, facts.files)
        if said := lacks_space(cache, missing):
            raise StepFailed(self.name, said)
        words = (facts.home, cache_folder(facts.model), facts.model, facts.revision)
        tool = (hub_program(facts.mount), str(self.stall_s))
        command = Command((*words, *tool), script="load_model", sudo=True, timeout_s=86_400)
        free = (cache.free_bytes - missing) / 1e9
        note = {
            "name": facts.model,
            "asked": facts.asked,
            "revision": facts.revision,
            "files": [[file.name, file.size_bytes, file.hash_hex] for file in facts.files],
        }
        return Plan(
            f"{facts.model} at {facts.revision[:12]}: {missing / 1e9:.1f} GB to download, {free:.1f} GB will be free",
            (Job("2-model", command, total_bytes=cache.size_bytes + missing),),
            notes={"model": note},
        )
