"""tmkms and node: started, and only called so when they have run for a while; what does not stay up is explained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pocqueue.deploy.engine import NotYet
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.service_logs import known_causes
from pocqueue.deploy.journal import STILL_THERE
from pocqueue.deploy.report import staying
from pocqueue.deploy.steps.all_services import AllServices, ClosedPorts
from pocqueue.deploy.steps.services import DOWN, ServicesRun
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import kinds, on_disk

STEP = ServicesRun(start_s=1)


async def test_services_are_started_once(tmp_path: Path) -> None:
    """With the images of what comes next; a second run changes nothing; rollback ends them, and nothing else."""
    async with on_disk(tmp_path) as here:
        with pytest.raises(NotYet):
            await STEP.look(here.host)
        here.has_project()
        assert (await here.plan(STEP)).what == "docker compose up -d --no-deps tmkms node"
        lines = await here.run(STEP)
        assert lines[-1].startswith("[OK] tmkms and node: tmkms: running for ")
        verbs = [call.words for call in here.fakes.calls("docker") if "pull" in call.words]
        assert verbs == [("compose", "pull", "--policy", "missing", "tmkms", "node", "api")]
        assert here.fakes.state("started").split() == ["tmkms", "node"]
        assert kinds(await here.later().run(STEP)) == {"[INFO]", "[CHECK]", "[SKIP]"}
        [undo] = here.host.journal.undos
        assert (await here.host.connection.run(undo.command())).exit_code == 0
        assert here.fakes.state("volumes-removed") == ""
        assert (here.join / ".inference" / "config" / "node_key.json").exists()
        assert not (await STEP.look(here.later().host)).docker.services
        shutil.rmtree(here.join)
        assert (await here.host.connection.run(undo.command())).exit_code == 0
        # Containers have that long to end; what is longer than a command may take would stop the rollback.
        assert undo.command().timeout_s >= 300


@pytest.mark.parametrize("gone", [".", "docker-compose.yml"])
async def test_containers_that_cannot_be_ended_stand(gone: str, tmp_path: Path) -> None:
    """Without its files compose ends nothing: rollback says so, and with which command a person does."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(STEP)
        [undo] = here.host.journal.undos
        (here.join / gone).rename(tmp_path / "gone")
        said = await here.host.connection.run(undo.command())
        assert said.exit_code == STILL_THERE
        assert "run on: end them with `docker rm -f node tmkms`" in said.stdout
        [*_, asked] = here.fakes.calls("docker")
        assert asked.words[-1] == f"label=com.docker.compose.project.working_dir={here.join}"
        here.fakes.set("engine", "stopped")
        said = await here.host.connection.run(undo.command())
        assert said.exit_code == STILL_THERE
        assert "docker does not say whether" in said.stdout


async def test_a_node_that_was_there_before_is_not_ended(tmp_path: Path) -> None:
    """Rollback has it among what stays; nor does it end what a run has added to it."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        up = here.fakes.run("docker", "compose", "up", "-d", "node", cwd=here.join)
        assert up.returncode == 0, up.stderr
        await here.run(STEP, ClosedPorts(), AllServices())
        assert not [undo for undo in here.host.journal.undos if undo.script == DOWN]
        said = "the node's containers: node were there before the first run"
        assert said in staying(here.host.conf, here.host.journal)


async def test_a_lost_memory_makes_no_containers_of_ours_others(tmp_path: Path) -> None:
    """The server knows who has made them; a run that acts has them in its list again."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(STEP)
        here.host.journal.path.unlink()
        later = here.later()
        await later.run(STEP, ClosedPorts(), AllServices())
        undos = [undo.step for undo in later.host.journal.undos if undo.script == DOWN]
        assert undos == ["all services"]
        assert not [what for what in staying(here.host.conf, later.host.journal) if "conta" in what]


async def test_what_runs_have_begun_is_ended(tmp_path: Path) -> None:
    """By each of them, though the later ones find the services of the first."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(STEP)
        await here.later().run(ClosedPorts(), AllServices())
        undos = [undo.step for undo in here.later().host.journal.undos if undo.script == DOWN]
        assert undos == ["tmkms and node", "all services"]
        assert not [what for what in staying(here.host.conf, here.host.journal) if "conta" in what]


@pytest.mark.parametrize(
    ("how", "log", "said"),
    [
        ("loop", "panic: upgrade handler is missing for v0.2.16", "node: restarting; the chain is"),
        ("loop", "level=info msg=hello", "node: restarting"),
        ("exits", "write: no space left on device", "node: exited with 137 (killed"),
        ("unhealthy", "", "node: running for 6. s, unhealthy"),
    ],
)
async def test_a_service_that_does_not_stay_up(
    how: str, log: str, said: str, tmp_path: Path
) -> None:
    """Its last lines are in the log, what is known of them in the error; its data stay."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.fakes.set("service-node", how)
        here.fakes.set("logs-node", f"{log}\n")
        with pytest.raises(StepFailed) as caught:
            await here.run(STEP)
        assert re.search(re.sub(r"[()]", r"\\\g<0>", said), str(caught.value))
        assert f"[OUTPUT] node  | {log}" in here.console.getvalue() or not log
        assert (here.join / ".inference" / "data").is_dir()
        assert not [call for call in here.fakes.calls("docker") if "down" in call.words]
        here.fakes.unset("service-node")
        assert kinds(await here.later().run(STEP)) == {"[INFO]", "[CHECK]", "[SKIP]"}


async def test_a_service_that_has_just_begun_is_waited_for(tmp_path: Path) -> None:
    """It may end at once, as one does that restarts all the time."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.fakes.set("age", "0")
        with pytest.raises(StepFailed, match=r"tmkms: running for [0-9]+ s, node: running"):
            await here.run(STEP)
        here.fakes.unset("age")
        assert kinds(await here.later().run(STEP)) == {"[INFO]", "[CHECK]", "[SKIP]"}


async def test_images_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Nothing is started; the engine's words are told."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.fakes.set("pull", "fails")
        with pytest.raises(StepFailed) as caught:
            await here.run(STEP)
        assert "no such host" in caught.value.tail[-1]
        assert here.fakes.state("started") == ""


@pytest.mark.parametrize("pattern", [r"job_start .*4-services", r"job_look .*4-services"])
@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_breaks(pattern: str, drop: str, tmp_path: Path) -> None:
    """The job goes on, and is found again."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        fault = here.server.fault(Fault(pattern, drop=drop))  # type: ignore[arg-type]
        await here.run_on(STEP)
        assert fault.times == 0
        assert here.fakes.state("started").split() == ["tmkms", "node"]


def test_causes() -> None:
    """Each by words of the program; nothing is said of a log that is well."""
    assert known_causes('level=info msg="committed state" height=7') == ()
    for line, said in (
        ("Environment variable KEY_NAME is required", "phase 3"),
        ("failed to load latest version: version does not exist", "damaged"),
        ("bind: address already in use", "port"),
        ('dial tcp: lookup "node2": no such host', "DNS"),
        ("\x1b[31mERR\x1b[0m no space \x1b[1mleft on device", "disk is full"),
        ("wrong Block.Header.AppHash. Expected X", "GONKA_REF"),
    ):
        assert said in "".join(known_causes(line))
