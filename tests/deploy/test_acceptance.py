"""A bare server becomes a verified node, by whole runs: what is planned is done, and a second run changes nothing."""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pocqueue.deploy import runner
from pocqueue.deploy.begin import Options
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.facts.node import SETUP_URL
from pocqueue.deploy.preflight import Check, Verdict
from pocqueue.deploy.runner import deploy, dry_run, rollback, run_all, status
from pocqueue.deploy.steps import volume
from pocqueue.deploy.steps.registration import participant_url
from tests.deploy import loop_devices, namespace as namespaces
from tests.deploy.bare_server import BareServer, bare_server
from tests.deploy.confs import PASSWORD
from tests.deploy.golden_logs import check_golden, normal
from tests.deploy.hub import has_listing
from tests.deploy.loop_devices import LoopDevice
from tests.deploy.namespace import Namespace
from tests.deploy.running_node import World, runs_well, setup

pytestmark = pytest.mark.skipif(
    bool(reason := namespaces.missing() or loop_devices.missing()), reason=reason or "none"
)

SUCCESS = "✅ Deployment completed successfully"
#: The first workflow's files, in `nodes/<KEY_NAME>/`.
FILES = {
    *("config.env", "node-config.json", "warm_key.txt", "warm_address.txt", "registration.txt"),
    *("volume.txt", "verification.txt"),
}


@pytest_asyncio.fixture
async def bare(
    tmp_path: Path, view: Namespace, disk: LoopDevice, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BareServer]:
    """A bare server, whose table before the run is a short one: the whole one has a test of its own."""

    async def short(*_args: Any) -> tuple[Check, ...]:
        return (Check("system", "root", Verdict.PASS, "root", "root"),)

    monkeypatch.setattr(runner, "look_at_server", short)
    monkeypatch.setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop",)))
    async with bare_server(tmp_path, view, disk) as bare:
        has_listing(bare.fakes)
        runs_well(bare.fakes, bare.conf, is_loaded=False)
        # Nobody knows it before it is registered.
        seed, key = bare.conf.seed_api_url, bare.conf.account_pubkey
        bare.fakes.answer(participant_url(seed, key), "{}", 404)
        bare.fakes.set("participant", account_address(key))
        yield bare


async def run(bare: BareServer, work: Any) -> tuple[int, list[str]]:
    """Do something; return its exit code, and its lines with words for what differs."""
    console = io.StringIO()
    options = Options(is_confirmed=True, console=console, outside=World(), growth_s=0.01)
    code = await run_all([bare.conf], options, work)
    assert PASSWORD not in console.getvalue()
    folder = bare.conf.path.parent.parent
    return code, normal(console.getvalue(), (folder, "HERE"))


def of_level(lines: list[str], *levels: str) -> list[str]:
    """Return the messages of some levels, without the level."""
    return [
        line.removeprefix(f"[TIME] [{level}] ")
        for line in lines
        for level in levels
        if line.startswith(f"[TIME] [{level}] ")
    ]


def planned_commands(lines: list[str]) -> list[str]:
    """Return the actions that a dry run shows."""
    marks = ("Remote: ", "Upload: ", "Local: ", "Download: ", "sudo ", "mkdir ")
    found = [line.strip() for line in of_level(lines, "INFO") if line.startswith(" " * 13)]
    return [line for line in found if line.startswith(marks) or ".sh " in line]


async def test_a_bare_server_becomes_a_verified_node(bare: BareServer) -> None:
    """Planned, done, done once more; then looked at with a node that is broken, and taken back."""
    before, empty = bare.tree(), bare.disk.hash()
    code, plan = await run(bare, dry_run)
    assert code == 0
    check_golden("plan", plan)
    assert (bare.tree(), bare.disk.hash()) == (before, empty)
    code, lines = await run(bare, deploy)
    assert code == 0, "\n".join(lines[-25:])
    check_golden("run", lines)
    phases = [line for line in of_level(lines, "INFO") if line.startswith("PHASE ")]
    assert [line.split(":")[0] for line in phases] == [f"PHASE {n}" for n in range(8)]
    assert {path.name for path in bare.conf.folder.iterdir()} >= FILES
    assert of_level(lines, "OK").count(SUCCESS) == 1
    # What was planned is what was done, in its order.
    commands = [line.removeprefix("Remote: ") for line in of_level(lines, "EXEC")]
    planned = planned_commands(plan)
    assert planned
    assert [command for command in commands if command in planned] == planned

    there = bare.tree()
    code, again = await run(bare, deploy)
    assert code == 0
    assert of_level(again, "EXEC", "OUTPUT", "ERROR") == []
    steps = [line for line in of_level(lines, "CHECK") if line.endswith("...")]
    assert len(of_level(again, "SKIP")) == len(of_level(lines, "OK", "SKIP")) - len(
        [line for line in of_level(again, "OK")]
    ), steps
    assert bare.tree() == there
    code, plan = await run(bare, dry_run)
    assert (code, planned_commands(plan)) == (0, [])
    code, lines = await run(bare, status)
    assert code == 0
    assert any(line.startswith("verification of ") for line in of_level(lines, "INFO"))

    bare.fakes.answer(SETUP_URL, setup(block_sync="FAIL"))
    code, failed = await run(bare, deploy)
    assert code == 1
    assert SUCCESS not in "\n".join(failed)
    check_golden("failing", failed)

    code, lines = await run(bare, rollback)
    assert code == 0, lines
    assert not bare.fakes.state("volumes-removed")
    assert not [path for path in (bare.fakes.folder / "state" / "docker").iterdir()]
    stays = [line for line in of_level(lines, "INFO") if line.startswith("Stays as it is: ")]
    assert len(stays) == 3
