"""The model on the server: loaded, resumed, proved by its hashes, and loaded again where a content is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.model import HUB, HUB_VERSION, HubProgram, Model
from tests.deploy.hub import MODEL, REVISION, has_listing
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk

STEPS = (HubProgram(), Model(stall_s=1))


def folder(here: OnDisk) -> Path:
    """Return the model's folder on the server."""
    return here.disk / "hf" / "hub" / "models--Qwen--Qwen3-32B-FP8"


async def test_a_model_is_loaded_and_proved_once(tmp_path: Path) -> None:
    """Its revision is found out once; the second run changes nothing and asks the hub nothing."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        plan = await here.plan(Model())
        assert "0.0 GB to download" in plan.what
        lines = await here.run(*STEPS)
        assert lines[-1] == (
            f"[OK] model: {MODEL} at {REVISION[:12]}, 4 files, every content is what it is named by"
        )
        assert (folder(here) / "refs" / "main").read_text() == REVISION
        asked = len(here.fakes.calls("curl"))
        lines = await here.later().run(*STEPS)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert len(here.fakes.calls("curl")) == asked


async def test_a_download_that_died_goes_on(tmp_path: Path) -> None:
    """With the bytes that are missing, by itself."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        here.fakes.set("hf", "dies")
        await here.run(*STEPS)
        assert "model-00002-of-00002.safetensors 100000\n" in here.fakes.state("loaded")


async def test_a_download_that_stalls_is_begun_anew(tmp_path: Path) -> None:
    """And goes on."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        here.fakes.set("hf", "stalls-once")
        lines = await here.run(*STEPS)
        assert "[OUTPUT] no byte for 1 s: the download begins anew" in lines


async def test_too_many_requests_are_waited_for(tmp_path: Path) -> None:
    """The hub's word is in the log, and the run goes on."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        here.fakes.set("hf", "429")
        lines = await here.run(*STEPS)
        assert [line for line in lines if "429 Too Many Requests" in line]
        assert lines[-1].startswith("[OK] model: ")


async def test_a_disk_that_fills_up_stops_the_run(tmp_path: Path) -> None:
    """With the hub's words; the next run goes on where there is space again."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        here.fakes.set("hf", "full")
        with pytest.raises(StepFailed) as raised:
            await here.run(HubProgram(), Model(stall_s=0))
        assert "No space left on device" in "\n".join(raised.value.tail)
        here.fakes.unset("hf")
        assert (await here.later().run(*STEPS))[-1].startswith("[OK] model: ")


@pytest.mark.parametrize("how", ["flipped", "cut"])
async def test_a_damaged_content_is_loaded_again(how: str, tmp_path: Path) -> None:
    """That one alone; a proof of before does not count for it."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        await here.run(*STEPS)
        shard = (
            folder(here) / "snapshots" / REVISION / "model-00001-of-00002.safetensors"
        ).resolve()
        data = shard.read_bytes()
        shard.write_bytes(data[:-1] if how == "cut" else b"2" + data[1:])
        (here.fakes.folder / "state" / "loaded").unlink()
        lines = await here.later().run(*STEPS)
        assert f"[OUTPUT] damaged: {shard.name}" in lines
        assert here.fakes.state("loaded") == "model-00001-of-00002.safetensors 200000\n"
        assert shard.read_bytes() == data


async def test_too_little_space_is_said_before(tmp_path: Path) -> None:
    """Nothing is begun."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        url = f"{HUB}/api/models/{MODEL}/revision/main?blobs=true"
        row = {"rfilename": "model.safetensors", "size": 10**18, "blobId": "a" * 40}
        here.fakes.answer(url, json.dumps({"sha": REVISION, "siblings": [row]}))
        with pytest.raises(StepFailed, match=r"are needed for 1000000000\.0 GB"):
            await here.plan(Model())


async def test_a_cache_that_leads_elsewhere_is_not_filled(tmp_path: Path) -> None:
    """A link in HF_HOME would fill another disk."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        (tmp_path / "elsewhere").mkdir()
        (here.disk / "hf").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StepFailed, match="a link may fill another disk"):
            await here.plan(Model())


async def test_a_link_that_came_meanwhile_is_not_written_through(tmp_path: Path) -> None:
    """The job asks again, before it writes; the file that the link names stays."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        await here.run(HubProgram())
        plan = await here.plan(Model(stall_s=1))
        victim = tmp_path / "victim"
        victim.write_text("kept")
        (folder(here) / "refs").mkdir(parents=True)
        (folder(here) / "refs" / "main").symlink_to(victim)
        with pytest.raises(StepFailed, match="leads out of"):
            await here.plan(Model(stall_s=1))
        [job] = plan.actions
        assert isinstance(job, Job)
        said = await here.host.connection.run(job.command)
        assert (said.exit_code, victim.read_text()) == (65, "kept")
        assert f"leads out of {folder(here)}" in said.stdout


async def test_contents_of_another_revision_stay(tmp_path: Path) -> None:
    """Also one whose hash is wrong: nothing here would load it again."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        other = folder(here) / "blobs" / ("d" * 64)
        other.parent.mkdir(parents=True)
        other.write_text("of somebody else")
        await here.run(*STEPS)
        assert other.read_text() == "of somebody else"
        other.write_text("changed")
        assert kinds(await here.later().run(*STEPS)) == {"[INFO]", "[CHECK]", "[SKIP]"}


async def test_the_hubs_program_is_of_our_version(tmp_path: Path) -> None:
    """In a venv on the disk; where it cannot be had the step says so."""
    async with on_disk(tmp_path) as here:
        here.fakes.set("pip", "fails")
        with pytest.raises(StepFailed, match="exit code 1"):
            await here.run(HubProgram())
        here.fakes.unset("pip")
        lines = await here.later().run(HubProgram())
        assert lines[-1].endswith(
            f"hub-{HUB_VERSION}/bin/hf: huggingface_hub version: {HUB_VERSION}"
        )
