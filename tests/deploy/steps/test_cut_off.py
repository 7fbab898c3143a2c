"""Every step of all phases, interrupted at its commands in every way: the same server comes of it as of an undisturbed run.

Hypothesis interrupts a step at some of what it does, each in a way of its own; everything in all steps is for `make test-long`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, note, seed, settings, strategies as st

from pocqueue.deploy.engine import Step
from pocqueue.deploy.errors import OutcomeUnknown, Unreachable
from pocqueue.deploy.lock import server_lock
from pocqueue.deploy.look import look_at_server
from pocqueue.deploy.session import log_in
from pocqueue.deploy.steps import all_steps
from pocqueue.deploy.steps.all_services import ModelServed
from pocqueue.deploy.steps.chain import NodeSynced
from pocqueue.deploy.steps.registration import Registration
from pocqueue.deploy.steps.volume import (
    FormatVolume,
    FstabLine,
    MountVolume,
    OwnMountPoint,
    VolumeNote,
)
from pocqueue.deploy.verify import verify_node
from tests.deploy.network import has_network
from tests.deploy.running_node import STATUS_URL, World, status as running_status
from tests.deploy.server import FAKES
from tests.deploy.steps.cutting import HOW, How, files, interrupted, run_on
from tests.deploy.steps.on_disk import OnDisk, kinds
from tests.deploy.steps.test_chain import has_servers
from tests.deploy.steps.test_packages import lacking, with_apt_of

#: What they do needs a real disk: test_volume.py has the same for them.
ON_REAL_DISKS = (FormatVolume, FstabLine, MountVolume, OwnMountPoint, VolumeNote)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFxtkahP9A6ocXDJwFUM8eXOBaWJtSNUrLxjxCya/I+G a b"
#: Seconds and tries of steps that wait.
SHORT: dict[type, dict[str, Any]] = {
    Registration: {"tries": 2, "every_s": 0.01},
    NodeSynced: {"tries": 2, "every_s": 0.01},
    ModelServed: {"every_s": 0.01},
}
#: What an interrupted run is interrupted at, among others: all that changes something.
CHANGES = (
    *(
        "admin_keys add",
        "1-packages",
        "monitoring put",
        "1-monitoring",
        "2-clone",
        "2-hub",
        "2-model",
    ),
    *("node_file keep", "join/config.env", "join/.env", "join/node-config.json", "4-services"),
    *("new_key ", "key_answer drop", "warm_key.txt", "warm_address.txt", "4-register"),
    *("registration.txt", "backup_keys make", "config config.toml", "config app.toml"),
    *("restart node", "5-sync", "join/docker-compose.pocqueue.yml", "6-pull", "6-up"),
)
_FOLDER = tempfile.TemporaryDirectory(prefix="cut-off-")
#: A server as it is behind each step, by the step's name.
States = dict[str, dict[str, str]]


def steps_of(here: OnDisk) -> list[Step]:
    """Return all steps but those of the disk; none of them waits long."""
    found = [step for step in all_steps(here.host.conf) if not isinstance(step, ON_REAL_DISKS)]
    return [replace(step, **SHORT.get(type(step), {})) for step in found]  # type: ignore[type-var]


def has_real_programs(here: OnDisk, folder: Path) -> None:
    """Have those on the server that some fakes call."""
    folder.mkdir()
    for name in ("git", "python3", "mountpoint"):
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    here.server.env["PATH"] += f":{folder}"


def state_of(here: OnDisk, base: Path) -> dict[str, str]:
    """Return what is so on the server, in the node's folder, and in its journal."""
    root = here.server.root
    folders = (here.disk, here.host.conf.folder, root / "state", root / ".ssh")
    found = {
        name: what
        for folder in folders
        if folder.exists()
        for name, what in files(folder, base).items()
    }
    journal = here.host.journal.path
    found["undo"] = json.dumps(json.loads(journal.read_text())["undo"]) if journal.exists() else ""
    found["packages"] = " ".join(sorted(set(here.fakes.state("packages").split())))
    return found


async def look_first(here: OnDisk) -> list[str]:
    """Do phase 0; return the names of the checks."""
    await log_in(here.host.connection, None)
    checks = await look_at_server(here.host, World())
    async with server_lock(here.host.connection, "alice", state_dir=here.host.state_dir):
        return [check.name for check in checks]


async def verify(here: OnDisk) -> str:
    """Do phase 7; return what verification.txt has."""
    await verify_node(here.later().host, World(), growth_s=0.01)
    return "\n".join(
        line.partition(":")[0]
        for line in (here.host.conf.folder / "verification.txt").read_text().splitlines()
    )


async def until_it_is_not_cut(work: Any, here: OnDisk) -> Any:
    """Do something that only looks, again where the connection has broken too often."""
    for _ in range(20):
        with suppress(OutcomeUnknown, Unreachable):
            return await work(here)
    raise AssertionError("it breaks for ever")


@asynccontextmanager
async def a_bare_server(base: Path) -> AsyncIterator[OnDisk]:
    """Have a server within the block whose node has no blocks: it begins from a snapshot, and is waited for."""
    keys = base / "admins.pub"
    keys.write_text(f"{KEY}\n")
    with with_apt_of(base / "apt"):
        async with lacking(base, "docker", ADMIN_KEYS=str(keys), MONITORING="on") as here:
            has_real_programs(here, base / "real")
            has_network(here.fakes, here.host.conf)
            has_servers(here)
            here.fakes.no_answer(STATUS_URL)
            yield here


async def outcome(how: How) -> tuple[States, set[str]]:
    """Return how a server is behind each step of a run that is interrupted at every command, and what was interrupted."""
    # Always the same: paths are in files, and hashes of files are names of others.
    base = Path(_FOLDER.name) / "run"
    base.mkdir()
    states: States = {}
    try:
        async with a_bare_server(base) as here:
            steps = steps_of(here)
            with interrupted(here.server, lambda: how, looks=True):
                states["checks"] = {"": " ".join(await until_it_is_not_cut(look_first, here))}
            with interrupted(here.server, lambda: how, looks=how == "during") as cut:
                for step in steps:
                    await run_on(here.host, step)
                    states[step.name] = state_of(here, base)
            here.fakes.answer(STATUS_URL, running_status())
            with interrupted(here.server, lambda: how, looks=True):
                states["verified"] = {"": await until_it_is_not_cut(verify, here)}
            if how in ("", "before"):
                again = kinds(await here.later().run(*steps))
                assert again <= {"[INFO]", "[CHECK]", "[SKIP]", "[WARN]"}
            happened_once(here)
            return states, cut
    finally:
        shutil.rmtree(base)


def counted(here: OnDisk) -> dict[str, object]:
    """Return what must not happen twice, as often as it did."""
    return {
        "keys": here.fakes.state("keys-added").split(),
        "registered": len(here.fakes.state("registered").splitlines()),
        "lost": here.fakes.state("volumes-removed"),
        "signers": here.fakes.state("started").split().count("tmkms"),
        "loaded": sorted(line.split()[0] for line in here.fakes.state("loaded").splitlines()),
    }


def happened_once(here: OnDisk) -> None:
    """Look at what must not happen twice."""
    found = counted(here)
    loaded = found.pop("loaded")
    assert found == {"keys": ["quick-newton"], "registered": 1, "lost": "", "signers": 1}
    assert isinstance(loaded, list)
    assert len(loaded) == len(set(loaded)) == 4


@cache
def undisturbed() -> States:
    """Return what an undisturbed run leaves."""
    states, cut = asyncio.run(outcome(""))
    assert not cut
    return states


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
def test_runs_that_are_interrupted_everywhere_end_as_one_that_is_not(how: How) -> None:
    """Behind each step, and so at the end; nothing that counts happens twice."""
    wanted = undisturbed()
    found, cut = asyncio.run(outcome(how))
    for name, state in wanted.items():
        assert found[name] == state, name
    assert found.keys() == wanted.keys()
    met = " ".join(" ".join(cut).split())
    assert [name for name in CHANGES if name not in met] == []


@dataclass(frozen=True)
class Undisturbed:
    """A server that a run has gone over, and what was so before and behind each of its steps."""

    here: OnDisk
    base: Path
    kept: Path
    steps: dict[str, Step]
    behind: dict[str, object]

    def keep(self, name: str) -> None:
        """Remember all that is on the server, and in the node's folder."""
        (self.kept / name).mkdir(parents=True)
        _copy(self.base, self._folders(), self.kept / name)

    def go_back(self, name: str) -> None:
        """Have all be as it was then."""
        kept = self.kept / name
        folders = self._folders()
        for folder in folders:
            shutil.rmtree(folder)
        there = [kept / folder.relative_to(self.base) for folder in folders]
        _copy(kept, [folder for folder in there if folder.exists()], self.base)

    def _folders(self) -> list[Path]:
        # But for the journal of the fakes, which nothing asks for.
        names = ("root", "disk", "fakes/set", "fakes/state", "apt", "installed")
        folders = [*(self.base / name for name in names), self.here.host.conf.folder]
        return [folder for folder in folders if folder.exists()]

    def state(self) -> object:
        """Return what is so now."""
        return state_of(self.here, self.base), counted(self.here)


def _copy(base: Path, folders: Sequence[Path], there: Path) -> None:
    """Copy folders with the times of their files, which some are recognized by."""
    names = [str(folder.relative_to(base)) for folder in folders]
    subprocess.run(["cp", "-a", "--parents", *names, str(there)], check=True, cwd=base)  # noqa: S607


@asynccontextmanager
async def gone_over(folder: Path) -> AsyncIterator[Undisturbed]:
    """Have such a server within the block."""
    base, kept = folder / "run", folder / "kept"
    base.mkdir()
    async with a_bare_server(base) as here:
        # Apart from the links to the machine's programs, which are many; docker calls others where it is itself.
        installed = base / "installed"
        installed.mkdir()
        for name in ("_fake.sh", "inferenced", "nvidia-smi"):
            (installed / name).symlink_to(FAKES / name)
        here.server.env["PATH"] = f"{installed}:{here.server.env['PATH']}"
        here.fakes.set("bin", str(installed))
        run = Undisturbed(here, base, kept, {step.name: step for step in steps_of(here)}, {})
        for name, step in run.steps.items():
            run.keep(name)
            await run_on(here.host, step)
            run.behind[name] = run.state()
        yield run


def test_a_step_that_is_interrupted_somewhere_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """Each of what it does, in its order: not at all, before, in the midst or behind; the run is killed, or the connection breaks."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        run = runner.run(stack.enter_async_context(gone_over(tmp_path)))
        try:
            for name in run.steps:
                interrupt(runner, run, name)
        finally:
            runner.run(stack.aclose())


def interrupt(runner: asyncio.Runner, run: Undisturbed, name: str) -> None:
    """Have hypothesis interrupt a step: all at its beginning, and then as it likes."""

    # Of each step's own, or it would choose the same for all of them.
    @seed(crc32(name.encode()))
    @settings(max_examples=2, suppress_health_check=list(HealthCheck))
    @given(ways=st.lists(st.sampled_from((*HOW, "")), min_size=4, max_size=12), looks=st.booleans())
    def interrupted_somewhere(ways: list[How], looks: bool) -> None:
        note(f"{name}: {ways}, {looks}")
        run.go_back(name)
        run.here.server.dropped.clear()
        left = iter(ways)
        with interrupted(run.here.server, lambda: next(left, ""), looks=looks):
            runner.run(run_on(run.here.host, run.steps[name]))
        assert run.state() == run.behind[name], name

    interrupted_somewhere()
