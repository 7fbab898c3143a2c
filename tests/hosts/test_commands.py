"""Only what is in the list is run, and nothing of it is read by a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from pocqueue.hosts.commands import Commands, Submission, Template, shell_text
from pocqueue.hosts.errors import CommandsError, JobRefused
from pocqueue.hosts.wire import Limits

LIST = f"""
[command.render]
argv = ["render", "--size={{width}}x{{height}}", "--gain", "{{gain}}", "--scene", "{{scene}}", "{{mode}}"]
max_seconds = 100
memory_mib = 2048
[command.render.parameters]
width = {{type = "integer", min = 1, max = 4096}}
height = {{type = "integer", min = 1, max = 4096}}
gain = {{type = "number", min = 0.0, max = 2.0}}
scene = {{type = "text", pattern = "[a-z/. -]+", max_length = 20}}
mode = {{type = "choice", of = ["fast", "--best"]}}
[image]
trainer = "registry.example.com/lab/trainer@sha256:{"ab" * 32}"
"""
GIVEN: dict[str, Any] = {
    "width": 640,
    "height": 480,
    "gain": 0.5,
    "scene": "a/b.c",
    "mode": "--best",
}


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """An operator's list."""
    path = tmp_path / "commands.toml"
    path.write_text(LIST)
    return Commands.load(path)


def test_parameters_stand_where_the_template_says(commands: Commands) -> None:
    """Each within its word; limits are those of the wire."""
    asked = Submission(name="render", parameters=GIVEN, gpus=1, timeout_s=99, node="n")
    job = commands.job(asked, "admin")
    argv = ["render", "--size=640x480", "--gain", "0.5", "--scene", "a/b.c", "--best"]
    assert job.spec["argv"] == argv
    assert job.spec["text"] == " ".join(argv)
    assert (job.gpus, job.timeout_s, job.only_node, job.submitter) == (1, 99, "n", "admin")
    assert commands.job(Submission(name="render", parameters=GIVEN), "admin").timeout_s == 100
    assert Limits(seconds=1, **job.spec["limits"]).memory_mib == 2048


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, r"parameters\.width is 0; allowed: a whole number from 1 to 4096\."),
        ({"width": "640"}, r"parameters\.width is '640'"),
        ({"width": 6.5}, r"parameters\.width is 6\.5"),
        ({"gain": 2.1}, r"allowed: a number from 0 to 2\."),
        ({"scene": "x" * 21}, r"up to 20 characters\."),
        ({"scene": "a\nb"}, r"parameters\.scene is"),
        ({"scene": "-rf"}, r"parameters\.scene is '-rf'"),
        ({"scene": "a; reboot"}, r"parameters\.scene is 'a; reboot'"),
        ({"mode": "slow"}, r"allowed: one of 'fast', '--best'\."),
        (
            {"other": 1},
            r"parameters\.other is not known; allowed: width, height, gain, scene, mode\.",
        ),
    ],
)
def test_parameters_that_are_not_allowed(
    commands: Commands, changes: dict[str, Any], words: str
) -> None:
    """The parameter is named, what was given, and what is allowed."""
    with pytest.raises(JobRefused, match=words):
        commands.job(Submission(name="render", parameters=GIVEN | changes), "admin")


def test_a_parameter_that_is_missing(commands: Commands) -> None:
    """Is named, too."""
    with pytest.raises(JobRefused, match=r"parameters\.width is missing; allowed: a whole"):
        commands.job(Submission(name="render"), "admin")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"name": "sh"}, r"'sh', which is no command of the list; allowed: render\."),
        (
            {"name": "x", "kind": "container"},
            r"'x', which is no image of the list; allowed: trainer\.",
        ),
        (
            {"name": "render", "parameters": GIVEN, "timeout_s": 101},
            r"allowed for render: up to 100\.",
        ),
        ({"name": "render", "argv": ["x"]}, "argv is for containers"),
        ({"name": "trainer", "kind": "container", "parameters": {"a": 1}}, "are for commands"),
        ({"name": "trainer", "kind": "container", "argv": ["a\0"]}, "NUL"),
    ],
)
def test_jobs_that_are_not_in_the_list(
    commands: Commands, asked: dict[str, Any], words: str
) -> None:
    """Whoever submits one reads what is."""
    with pytest.raises(JobRefused, match=words):
        commands.job(Submission(**asked), "admin")


def test_a_container_is_what_its_digest_says(commands: Commands) -> None:
    """Its words are its own; agents of protocol 1 get none."""
    asked = Submission(kind="container", name="trainer", argv=("train", "$(reboot)"))
    spec = commands.job(asked, "admin").spec
    assert spec["image"].endswith("@sha256:" + "ab" * 32)
    assert (spec["argv"], spec["text"]) == (["train", "$(reboot)"], None)


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout_s": 0},
        {"timeout_s": 86_401},
        {"gpus": -1},
        {"gpus": 65},
        {"priority": 101},
        {"argv": ["x"] * 65},
        {"kind": "test"},
        {"shell": True},
        {"parameters": {"seconds": float("nan")}},
    ],
)
def test_submissions_have_bounds(changes: dict[str, Any]) -> None:
    """Whatever the list says."""
    with pytest.raises(ValidationError):
        Submission(**{"name": "sleep"} | changes)


WORDS = st.lists(st.text(max_size=12), min_size=1, max_size=5)


@given(WORDS | st.lists(st.text("ab=;$`'\"\\|&<>*?~#(){}[]! \n-/.", max_size=6), min_size=1))
def test_a_text_for_a_shell_means_the_same_there(words: list[str]) -> None:
    """What could mean anything else has no text."""
    text = shell_text(words)
    if text is None:
        return
    assert text.split(" ") == words
    told = ["sh", "-c", f"printf '%s\\n' {text}"]
    done = subprocess.run(told, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[command", "is no TOML"),
        ("[command.x]", r"wrong at command\.x\.argv: Field required"),
        ("[command.x]\nargv = []", r"wrong at command\.x\.argv"),
        ("[command.x]\nargv = ['{program}']", "the program itself has to be fixed"),
        ("[command.x]\nargv = ['a', '{b}']", "argv and parameters differ in b"),
        ("[command.X]\nargv = ['a']", r"wrong at command\.X"),
        ("[command.x]\nargv = ['a']\nshell = true", r"wrong at command\.x\.shell"),
        (
            "[command.x]\nargv = ['a', '{b}']\nparameters.b = {type = 'text', pattern = '['}",
            "pattern cannot be read",
        ),
        ("[image]\nx = 'trainer:latest'", r"wrong at image\.x"),
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """The operator reads where it is."""
    path = tmp_path / "commands.toml"
    path.write_text(text)
    with pytest.raises(CommandsError, match=words) as caught:
        Commands.load(path)
    assert str(path) in str(caught.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    """Its variable is named."""
    with pytest.raises(CommandsError, match="POCQUEUE_HOSTS_COMMANDS_FILE names it"):
        Commands.load(tmp_path / "none.toml")


def test_the_list_that_comes_with_it() -> None:
    """Has a command to try, and no image; every command of it can be said to any agent."""
    commands = Commands.load(None)
    asked = Submission(name="sleep", parameters={"seconds": 5})
    assert commands.job(asked, "admin").spec["text"] == "sleep 5"
    assert commands.image == {}
    assert all(isinstance(template, Template) for template in commands.command.values())
