"""Phases 2 and 3 from another machine, which has no memory of the first."""

from __future__ import annotations

from pathlib import Path

from pocqueue.deploy.engine import Step
from pocqueue.deploy.steps.model import HUB, HubProgram, Model
from pocqueue.deploy.steps.node_files import HasNodeFile
from pocqueue.deploy.steps.repository import Repository
from tests.deploy.hub import MODEL, REVISION, has_listing
from tests.deploy.steps.on_disk import kinds, on_disk

STEPS: tuple[Step, ...] = (
    *(Repository(), HubProgram(), Model(stall_s=60)),
    *(HasNodeFile(name) for name in ("config.env", "node-config.json", ".env")),
)


async def test_another_machine_does_not_move_a_node_on(tmp_path: Path) -> None:
    """It knows nothing of what was the newest then, and takes what is there."""
    async with on_disk(tmp_path) as here:
        upstream = here.fakes.own_upstream()
        has_listing(here.fakes)
        await here.run(*STEPS)
        has_listing(here.fakes, REVISION)
        here.fakes.answer(f"{HUB}/api/models/{MODEL}/revision/main?blobs=true", "{}")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        here.fakes.run("git", "-C", str(upstream), *who, "commit", "-q", "--allow-empty", "-m", "x")
        (here.host.conf.folder / "state.json").unlink()
        assert kinds(await here.later().run(*STEPS)) == {"[INFO]", "[CHECK]", "[SKIP]"}
