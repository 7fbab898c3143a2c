"""The grant's command: both names filled in, the first workflow's words, and nothing of the cold key on any server."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocqueue.cli import app
from tests.deploy.confs import text

ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
WORDS = (
    *("tx", "inference", "grant-ml-ops-permissions", "my-cold.key", ADDRESS, "--from"),
    *("my-cold.key", "--keyring-backend", "file", "--gas", "2000000"),
    *("--node", "http://node2.gonka.ai:8000/chain-rpc/"),
)


@pytest.fixture
def conf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf file, in a folder where we are, of a node whose warm key is made."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nodes" / "node1.conf"
    (path.parent / "quick-newton").mkdir(parents=True)
    path.write_text(text(COLD_KEY_NAME="my-cold.key"))
    path.chmod(0o600)
    (path.parent / "quick-newton" / "warm_address.txt").write_text(f"{ADDRESS}\n")
    return path


def program(folder: Path, code: int = 0) -> Path:
    """Make a program that writes down its words; return the file of these."""
    path = folder / "inferenced"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/words\nexit {code}\n')
    path.chmod(0o755)
    return folder / "words"


def test_it_is_printed_to_be_copied(conf_file: Path) -> None:
    """A shell reads it back as these words; nothing is run."""
    words = program(conf_file.parents[1])
    done = CliRunner().invoke(app, ["deploy", "grant", str(conf_file)])
    assert done.exit_code == 0
    assert shlex.split(done.output.replace("\\\n", "")) == ["./inferenced", *WORDS]
    assert len(done.output.splitlines()) == 7
    assert not words.exists()


def test_it_is_run_where_the_program_is(conf_file: Path) -> None:
    """With these very words; an end that is none is an error, and no end is said to be the chain's word."""
    words = program(conf_file.parents[1])
    done = CliRunner().invoke(app, ["deploy", "grant", str(conf_file), "--run"])
    assert done.exit_code == 0
    assert words.read_text().splitlines() == list(WORDS)
    assert "Whether the chain took it" in done.output
    program(conf_file.parents[1], code=3)
    failed = CliRunner().invoke(app, ["deploy", "grant", str(conf_file), "--run"])
    assert failed.exit_code == 1
    assert "exit code 3" in failed.output
    assert "has sent it" not in failed.output


def test_without_the_program_or_the_key_it_says_so(
    conf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where to take it, or what makes the key; a file that is no address is none."""
    monkeypatch.setenv("PATH", "/usr/bin")
    done = CliRunner().invoke(app, ["deploy", "grant", str(conf_file), "--run"])
    assert done.exit_code == 2
    assert "the machine that has it and the cold key" in done.output
    address = conf_file.parent / "quick-newton" / "warm_address.txt"
    address.write_text(ADDRESS[:-1] + "q\n")
    assert CliRunner().invoke(app, ["deploy", "grant", str(conf_file)]).exit_code == 1
    address.unlink()
    done = CliRunner().invoke(app, ["deploy", "grant", str(conf_file)])
    assert done.exit_code == 1
    assert "phase 4" in done.output
