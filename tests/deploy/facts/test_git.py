"""A clone on the server, by real git: what may be done with each state of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pocqueue.deploy.facts.git import CloneState, GitFacts, clone_state, git_facts, read_git
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from tests.deploy.facts.answers import answer

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(folder: Path, *argv: str) -> str:
    """Run git, which has to end well."""
    command = ["git", "-C", str(folder), *argv]
    return subprocess.run(
        command, env=ENV, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A repository of two commits."""
    folder = tmp_path_factory.mktemp("upstream")
    git(folder, "init", "-q", "-b", "main")
    commits = []
    for text in ("one", "two"):
        (folder / "deploy").mkdir(exist_ok=True)
        (folder / "deploy" / "node-config.json").write_text(text)
        (folder / "README").write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", text)
        commits.append(git(folder, "rev-parse", "HEAD"))
    return folder, commits[0], commits[1]


def facts_of(folder: Path) -> GitFacts:
    """Read what is known of a folder, as a deployment does."""
    argv = git_facts(str(folder)).argv()
    done = subprocess.run(argv, env=ENV, check=True, capture_output=True, text=True, timeout=120)
    return read_git(str(folder), done.stdout)


def _nothing(clone: Path) -> None: ...


def _edit(clone: Path) -> None:
    (clone / "README").write_text("edited")


def _edit_own(clone: Path) -> None:
    (clone / "deploy" / "node-config.json").write_text("ours")
    (clone / "deploy" / "config.env").write_text("ours, too")


def _back(clone: Path) -> None:
    git(clone, "checkout", "-q", "HEAD~1")


def _cut_early(clone: Path) -> None:
    (clone / ".git" / "refs" / "heads" / "main").unlink()
    (clone / ".git" / "packed-refs").unlink()


def _cut_late(clone: Path) -> None:
    (clone / ".git" / "index").unlink()


def _other(clone: Path) -> None:
    git(clone, "remote", "set-url", "origin", "https://example.org/other.git")


def _no_git(clone: Path) -> None:
    shutil.rmtree(clone / ".git")


def _gone(clone: Path) -> None:
    shutil.rmtree(clone)


def _emptied(clone: Path) -> None:
    shutil.rmtree(clone)
    clone.mkdir()


def _link(clone: Path) -> None:
    clone.rename(clone.with_name("elsewhere"))
    clone.symlink_to(clone.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (_nothing, CloneState.READY),
        (_edit, CloneState.EDITED),
        (_edit_own, CloneState.READY),
        (_back, CloneState.OTHER_COMMIT),
        (_cut_early, CloneState.PARTIAL),
        (_cut_late, CloneState.PARTIAL),
        (_other, CloneState.OTHER_REMOTE),
        (_no_git, CloneState.FOREIGN),
        (_gone, CloneState.MISSING),
        (_emptied, CloneState.MISSING),
        (_link, CloneState.FOREIGN),
    ],
)
def test_states_of_a_clone(
    change: Callable[[Path], None],
    state: CloneState,
    upstream: tuple[Path, str, str],
    tmp_path: Path,
) -> None:
    """Reading it changes nothing in it."""
    source, _, commit = upstream
    clone = tmp_path / "gonka"
    git(tmp_path, "clone", "-q", f"file://{source}", str(clone))
    change(clone)
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    facts = facts_of(clone)
    assert clone_state(facts, f"file://{source}/", commit, {"deploy/node-config.json"}) is state
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_clone_that_git_refuses_is_left_alone() -> None:
    """Such as one of another user."""
    said = ("fatal: detected dubious ownership", 128)
    folder = "real=/mnt/ssd/gonka\nkind=directory\nentries=1\ngit=1\nindex=1"
    facts = read_git(
        "/mnt/ssd/gonka", answer(folder=folder, head=said, remote=said, status=said, top=said)
    )
    assert clone_state(facts, "https://x/y.git", "0" * 40) is CloneState.UNREADABLE


def test_what_is_no_commit_is_an_error() -> None:
    """And shows it."""
    folder = "real=/a\nkind=directory\nentries=1\ngit=1"
    with pytest.raises(UnexpectedAnswer, match="main"):
        read_git("/a", answer(folder=folder, head="main", remote="x", status="", top="/a"))
