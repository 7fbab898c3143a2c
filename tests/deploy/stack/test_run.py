"""pocqueue on a server: put there, left alone, updated one worker at a time, taken back."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

import pytest

from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.stack import StackFacts
from pocqueue.deploy.stack.steps import Places, Version, Wanted
from pocqueue.deploy.stack.units import unit_text
from pocqueue.deploy.stack.wheel import read_wheel
from tests.deploy.server import Fault
from tests.deploy.stack.on_server import URL, on_server, wheel
from tests.deploy.steps_of_tests import tree

WORKERS = ["pocqueue-worker@gpu0.service", "pocqueue-worker@gpu1.service"]
ALL = ["pocqueue-io.service", *WORKERS]


def of_level(lines: list[str], *levels: str) -> list[str]:
    """Return the messages of some levels."""
    return [line for line in lines if line.split("]")[0][1:] in levels]


async def test_it_is_put_there_once(tmp_path: Path) -> None:
    """A dry run says what is going to be done and changes nothing; the second run does nothing."""
    async with on_server(tmp_path) as here:
        here.fakes.secret(URL)
        here.fakes.secret("squeamish ossifrage")
        before = tree(here.root)
        code, planned = await here.run(here.conf(), wheel(tmp_path), is_dry=True)
        assert (code, planned[-1]) == (
            0,
            "[INFO] 8 steps to change, 0 done, 0 unknown. Nothing was changed.",
        )
        assert tree(here.root) == before
        code, lines = await here.run(here.conf(), wheel(tmp_path))
        assert code == 0
        for line in of_level(lines, "EXEC"):
            assert any(line.removeprefix("[EXEC] Remote: ") in text for text in planned), line
        assert here.restarts() == ALL
        env = here.root / "etc" / "pocqueue" / "pocqueue.env"
        assert stat.S_IMODE(env.stat().st_mode) == 0o640
        assert f"POCQUEUE_REDIS_URL='{URL}'\n" in env.read_text()
        assert (here.root / "etc/systemd/system/pocqueue.target").read_text() == unit_text(
            "pocqueue.target"
        )
        before = tree(here.root)
        code, lines = await here.run(here.conf())
        assert (code, of_level(lines, "EXEC", "WARN", "ERROR")) == (0, [])
        assert len(of_level(lines, "SKIP")) == 8
        assert tree(here.root) == before
        assert here.restarts() == ALL
        assert "ossifrage" not in "".join((*lines, *planned, *here.server.commands))


async def test_an_account_without_its_folders_gets_them(tmp_path: Path) -> None:
    """As after a cut, or where somebody made the user; a mode that is too wide is mended, and nothing is started anew."""
    async with on_server(tmp_path) as here:
        state = here.fakes.folder / "state"
        state.mkdir(exist_ok=True)
        (state / "account").touch()
        conf = here.conf(POCQUEUE_ROLE="io")
        code, lines = await here.run(conf, wheel(tmp_path))
        assert code == 0, lines[-8:]
        folders = [here.root / "etc" / "pocqueue", here.root / "var" / "lib" / "pocqueue"]
        for folder in folders:
            folder.chmod(0o755)
            assert (await here.run(conf))[0] == 0
            assert [stat.S_IMODE(each.stat().st_mode) for each in folders] == [0o750, 0o750]
        (state / "owners" / str(folders[0]).replace("/", "_")).unlink()
        code, lines = await here.run(conf)
        assert (code, sum("account pocqueue:" in line for line in of_level(lines, "OK"))) == (0, 1)
        assert here.restarts() == ALL[:1]


async def test_an_update_stops_at_the_first_worker_that_does_not_come_back(tmp_path: Path) -> None:
    """The others go on as they are; `--rollback` is the way back, and a run from another machine finds its way, too."""
    async with on_server(tmp_path) as here:
        conf = here.conf()
        assert (await here.run(conf, wheel(tmp_path)))[0] == 0
        old = (here.opt / "current").readlink()
        second = here.pid(WORKERS[1])
        here.fakes.set("deaf")
        code, lines = await here.run(conf, wheel(tmp_path, "two"), live_s=1)
        assert code == 1
        assert "[OUTPUT] quick-newton.gpu0 is not in the pool after 1 s" in lines
        assert here.restarts() == [*ALL, *ALL[:2]]
        assert here.pid(WORKERS[1]) == second
        here.fakes.unset("deaf")
        code, lines = await here.run(conf, goes_back=True)
        assert code == 0
        assert (here.opt / "current").readlink() == old
        # The second one was of that version all the time.
        assert here.pid(WORKERS[1]) == second
        assert here.restarts() == [*ALL, *ALL[:2], *ALL[:2]]
        code, lines = await here.run(conf, wheel(tmp_path, "two"))
        assert (code, here.restarts()[-3:]) == (0, ALL)
        assert not here.fakes.state("killed")


async def test_a_worker_that_ends_says_why(tmp_path: Path) -> None:
    """Its last lines are in the log; the next one is not started."""
    async with on_server(tmp_path) as here:
        here.fakes.set("ends")
        code, lines = await here.run(here.conf(POCQUEUE_ROLE="worker"), wheel(tmp_path))
        assert code == 1
        assert "[OUTPUT] pocqueue: the model does not fit" in lines
        assert here.restarts() == WORKERS[:1]
        here.fakes.unset("ends")
        here.fakes.set("units", WORKERS[1])
        code, lines = await here.run(here.conf(POCQUEUE_ROLE="worker"))
        assert code == 1
        assert f"[OUTPUT] {WORKERS[1]} does not start" in lines
        assert here.restarts() == [WORKERS[0], *WORKERS]


async def test_redis_is_started_anew_last_and_only_if_that_is_asked_for(tmp_path: Path) -> None:
    """It is what must live."""
    async with on_server(tmp_path) as here:
        conf = here.conf(
            POCQUEUE_ROLE="redis,worker", POCQUEUE_GPUS="0", POCQUEUE_REDIS_URL_FILE=None
        )
        redis, worker = "pocqueue-redis.service", WORKERS[0]
        assert (await here.run(conf, wheel(tmp_path)))[0] == 0
        assert here.restarts() == [redis, worker]
        assert (await here.run(conf, wheel(tmp_path, "two")))[0] == 0
        assert here.restarts() == [redis, worker, worker]
        assert (await here.run(conf, with_redis=True))[0] == 0
        assert here.restarts() == [redis, worker, worker, redis]
        assert (await here.run(conf, with_redis=True))[0] == 0
        assert len(here.restarts()) == 4


async def test_changed_variables_start_everything_anew(tmp_path: Path) -> None:
    """One at a time, as an update does."""
    async with on_server(tmp_path) as here:
        assert (await here.run(here.conf(), wheel(tmp_path)))[0] == 0
        (tmp_path / "model").mkdir()
        conf = here.conf(POCQUEUE_MODEL=str(tmp_path / "model"))
        assert (await here.run(conf))[0] == 0
        assert here.restarts() == ALL * 2


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"POCQUEUE_ROLE": None}, 2, "POCQUEUE_ROLE is missing"),
        ({"POCQUEUE_GPUS": "0,7"}, 1, "FAIL gpu-numbers: 2 there"),
        ({"POCQUEUE_REDIS_URL_FILE": None}, 2, "POCQUEUE_REDIS_URL_FILE is missing"),
        ({"POCQUEUE_ROLE": "redis,worker"}, 2, "are two servers"),
    ],
)
async def test_what_cannot_be_is_said_before_anything_runs(
    changes: dict[str, str | None], code: int, said: str, tmp_path: Path
) -> None:
    """In a sentence."""
    async with on_server(tmp_path) as here:
        found, lines = await here.run(here.conf(**changes), wheel(tmp_path))
        assert (found, said in "\n".join(lines)) == (code, True)
        assert not here.restarts()
        assert not (here.opt / "current").exists()


async def test_a_driver_that_does_not_answer_is_no_machine_without_gpus(tmp_path: Path) -> None:
    """Nothing is begun, unless the CPU was asked for."""
    async with on_server(tmp_path) as here:
        here.fakes.set("gpu", "not-loaded")
        names = {"POCQUEUE_ROLE": "worker", "POCQUEUE_GPUS": "0"}
        code, lines = await here.run(here.conf(**names), wheel(tmp_path))
        failed = [line for line in lines if "FAIL gpu-numbers: none: it is installed" in line]
        assert (code, len(failed), here.restarts()) == (1, 1, [])
        (here.nodes / "more").write_text("POCQUEUE_DEVICE=cpu")
        (here.nodes / "more").chmod(0o600)
        conf = here.conf(**names, POCQUEUE_ENV_FILE="more")
        assert (await here.run(conf, wheel(tmp_path), is_dry=True))[0] == 0


async def test_the_first_time_needs_a_wheel(tmp_path: Path) -> None:
    """And going back a version before."""
    async with on_server(tmp_path) as here:
        code, lines = await here.run(here.conf())
        assert (code, "--wheel FILE" in "\n".join(lines)) == (2, True)
        code, lines = await here.run(here.conf(), goes_back=True)
        assert (code, "no version before" in "\n".join(lines)) == (2, True)


def test_a_server_without_a_new_python_is_told(tmp_path: Path) -> None:
    """Ubuntu 22.04 has 3.10: nothing is sent there."""
    made = read_wheel(wheel(tmp_path))
    wanted = Wanted(Places(), "systemd", made.folder, {}, made, "", {}, (), "id")
    bare = StackFacts(True, "", "3.10", {}, "", "", "-", 0, {}, {}, None)
    with pytest.raises(StepFailed, match=r"no Python of 3\.11 or newer with venv \(found: 3\.10\)"):
        Version(wanted).plan(bare)


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_breaks_starts_no_worker_twice(
    drop: Literal["before", "after"], tmp_path: Path
) -> None:
    """When the wheel is sent, the venv made, the variables written, a worker started or looked at."""
    async with on_server(tmp_path) as here:
        faults = [
            here.server.fault(Fault(pattern, drop=drop))
            for pattern in (
                *("stack_change wheel ", "job_look .*8-venv", "stack_change env "),
                *("job_start .*8-pocqueue-worker-gpu0", "job_look .*8-pocqueue-worker-gpu0"),
            )
        ]
        conf = here.conf(POCQUEUE_ROLE="worker", POCQUEUE_GPUS="0")
        code, lines = await here.run(conf, wheel(tmp_path))
        assert code == 0, lines[-20:]
        assert [fault.times for fault in faults] == [0] * len(faults)
        assert here.restarts() == WORKERS[:1]
        assert len(here.fakes.state("pip").splitlines()) == 1


async def test_a_model_that_does_not_fit_is_said_before(tmp_path: Path) -> None:
    """Into what is free; a worker that runs has its model there already."""
    model = tmp_path / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(8 << 30)
    async with on_server(tmp_path) as here:
        conf = here.conf(POCQUEUE_ROLE="worker", POCQUEUE_GPUS="0", POCQUEUE_MODEL=str(model))
        here.fakes.set("gpu-free", "11000")
        code, lines = await here.run(conf, wheel(tmp_path))
        assert code == 1
        assert any(line.startswith("[ERROR] FAIL gpu-room: GPU 0: 10.7 GiB free") for line in lines)
        assert not here.restarts()
        here.fakes.set("gpu-free", "12000")
        assert (await here.run(conf, wheel(tmp_path)))[0] == 0
        here.fakes.set("gpu-free", "100")
        assert (await here.run(conf))[0] == 0
