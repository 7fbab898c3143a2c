"""Phases 2 and 3 with a connection that breaks: a run ends as an undisturbed one does, and loads nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from pocqueue.deploy.engine import Step
from pocqueue.deploy.steps.model import HUB, HubProgram, Model
from pocqueue.deploy.steps.node_files import HasNodeFile
from pocqueue.deploy.steps.repository import Repository
from tests.deploy.hub import MODEL, REVISION, has_listing
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import kinds, on_disk

STEPS: tuple[Step, ...] = (
    *(Repository(), HubProgram(), Model(stall_s=60)),
    *(HasNodeFile(name) for name in ("config.env", "node-config.json", ".env")),
)


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_breaks_at_every_change(
    drop: Literal["before", "after"], tmp_path: Path
) -> None:
    """When a job is started, when one is looked at, and when a file is kept."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        faults = [
            here.server.fault(Fault(pattern, drop=drop))
            for pattern in (
                *(r"job_start .*2-clone", r"job_look .*2-clone", r"job_start .*2-hub"),
                *(r"job_start .*2-model", r"job_look .*2-model", r"node_file keep .* config\.env"),
            )
        ]
        await here.run(*STEPS)
        assert [fault.times for fault in faults] == [0] * len(faults)
        names = [line.split()[0] for line in here.fakes.state("loaded").splitlines()]
        assert len(names) == len(set(names)) == 4
        assert len([call for call in here.fakes.calls("git") if "clone" in call.words]) == 1
        assert sorted(path.name for path in here.disk.iterdir()) == [".pocqueue", "gonka", "hf"]
        assert kinds(await here.later().run(*STEPS)) == {"[INFO]", "[CHECK]", "[SKIP]"}


async def test_another_machine_does_not_move_a_node_on(tmp_path: Path) -> None:
    """It knows nothing of what was the newest then, and takes what is there."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        await here.run(*STEPS)
        has_listing(here.fakes, REVISION)
        here.fakes.answer(f"{HUB}/api/models/{MODEL}/revision/main?blobs=true", "{}")
        upstream = here.fakes.folder / "state" / "upstream"
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        here.fakes.run("git", "-C", str(upstream), *who, "commit", "-q", "--allow-empty", "-m", "x")
        (here.host.conf.folder / "state.json").unlink()
        assert kinds(await here.later().run(*STEPS)) == {"[INFO]", "[CHECK]", "[SKIP]"}
