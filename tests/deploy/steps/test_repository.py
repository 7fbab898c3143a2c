"""Gonka's repository on the server: cloned whole or not at all, and never over something of others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocqueue.deploy.engine import NotYet
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.git import read_ls_remote
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.steps.repository import URL, Repository
from tests.deploy.steps.on_disk import kinds, on_disk

STEP = Repository()


async def test_a_clone_is_made_once(tmp_path: Path) -> None:
    """At the newest commit, which is asked for once; the second run changes nothing."""
    async with on_disk(tmp_path) as here:
        lines = await here.run(STEP)
        assert re.match(r"\[OK\] gonka repository: .*/gonka at [0-9a-f]{12}", lines[-1])
        assert (here.disk / "gonka" / "deploy" / "join" / "docker-compose.yml").exists()
        assert [path.name for path in here.disk.iterdir()] == ["gonka"]
        asked = len([call for call in here.fakes.calls("git") if "ls-remote" in call.words])
        lines = await here.later().run(STEP)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert len([call for call in here.fakes.calls("git") if "ls-remote" in call.words]) == asked


async def test_an_interrupted_clone_is_moved_aside(tmp_path: Path) -> None:
    """Ours, which was killed half-way, and one that another script left in the place."""
    async with on_disk(tmp_path, GONKA_REF="v0.2.12") as here:
        here.fakes.set("git", "dies")
        with pytest.raises(StepFailed, match="137"):
            await here.run(STEP)
        assert not (here.disk / "gonka").exists()
        assert (here.disk / "gonka.pocqueue-new" / ".git").exists()
        here.fakes.set("git", "dies")
        here.fakes.run("git", "clone", URL, str(here.disk / "gonka"))
        await here.later().run(STEP)
        names = sorted(path.name.split(".aside-")[0] for path in here.disk.iterdir())
        assert names == ["gonka", "gonka", "gonka.pocqueue-new"]


async def test_another_commit_is_checked_out_with_our_own_file_kept(tmp_path: Path) -> None:
    """What a deployment writes into it is no edit of others."""
    async with on_disk(tmp_path) as here:
        upstream = here.fakes.own_upstream()
        await here.run(STEP)
        join = here.disk / "gonka" / "deploy" / "join"
        (join / "node-config.json").write_text("ours")
        (upstream / "README").write_text("new")
        here.fakes.run("git", "-C", str(upstream), "add", ".")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        here.fakes.run("git", "-C", str(upstream), *who, "commit", "-qm", "second")
        commit = here.fakes.run("git", "-C", str(upstream), "rev-parse", "HEAD").stdout.strip()
        await here.later(gonka_ref=commit).run(STEP)
        assert (here.disk / "gonka" / "README").read_text() == "new"
        assert (join / "node-config.json").read_text() == "ours"


@pytest.mark.parametrize("what", ["edits", "files", "link", "other"])
async def test_what_is_of_others_stays(what: str, tmp_path: Path) -> None:
    """Edits, other files, a link, another repository: a sentence, and nothing changed."""
    async with on_disk(tmp_path) as here:
        gonka = here.disk / "gonka"
        if what == "files":
            gonka.mkdir()
            (gonka / "data").write_text("mine")
        elif what == "link":
            gonka.symlink_to(tmp_path)
        else:
            await here.run(STEP)
            if what == "edits":
                (gonka / "deploy" / "join" / "docker-compose.yml").write_text("mine")
            else:
                here.fakes.run(
                    "git", "-C", str(gonka), "remote", "set-url", "origin", "https://x/y.git"
                )
        before = sorted(path for path in here.disk.rglob("*"))
        with pytest.raises(StepFailed, match="not ours"):
            await here.later().run(STEP)
        assert sorted(path for path in here.disk.rglob("*")) == before


async def test_nothing_is_cloned_onto_the_systems_disk(tmp_path: Path) -> None:
    """Without the disk the step is not planned either."""
    async with on_disk(tmp_path) as here:
        here.fakes.unset("mounted")
        with pytest.raises(NotYet, match="is mounted"):
            await STEP.look(here.host)


def test_the_commit_of_a_name() -> None:
    """Of a tag with a message the commit that it is of; a branch; the newest."""
    tag, of, head = "1" * 40, "2" * 40, "3" * 40
    text = f"{tag}\trefs/tags/v1\n{of}\trefs/tags/v1^{{}}\n{head}\trefs/heads/main\n{head}\tHEAD\n"
    assert read_ls_remote(text, "v1") == of
    assert read_ls_remote(text, "main") == head
    assert read_ls_remote(text, "HEAD") == head
    for wrong in ("", "fatal: not found\n"):
        with pytest.raises(UnexpectedAnswer, match="git ls-remote"):
            read_ls_remote(wrong, "v1")
