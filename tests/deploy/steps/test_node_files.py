"""The node's three files: what the conf says, byte for byte, on the server and here; what was there before is kept."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from dotenv import dotenv_values

from pocqueue.deploy.engine import NotYet, run_steps
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.journal import STILL_THERE
from pocqueue.deploy.node_files import node_config, node_files, variables
from pocqueue.deploy.steps.node_files import HasNodeFile
from pocqueue.deploy.words import Secret
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.steps.on_disk import kinds, on_disk

NAMES = ("config.env", "node-config.json", ".env")
STEPS = tuple(HasNodeFile(name) for name in NAMES)


async def test_files_are_written_once(tmp_path: Path) -> None:
    """For their owner alone where they have the password; a second run changes nothing."""
    async with on_disk(tmp_path) as here:
        join = here.disk / "gonka" / "deploy" / "join"
        with pytest.raises(NotYet, match="deploy/join is there"):
            await STEPS[0].look(here.host)
        join.mkdir(parents=True)
        await here.run(*STEPS)
        modes = {name: stat.S_IMODE((join / name).stat().st_mode) for name in NAMES}
        assert modes == {"config.env": 0o600, "node-config.json": 0o644, ".env": 0o600}
        for name in NAMES:
            assert (here.host.conf.folder / name).read_bytes() == (join / name).read_bytes()
            assert stat.S_IMODE((here.host.conf.folder / name).stat().st_mode) == 0o600
        assert f"KEYRING_PASSWORD='{PASSWORD}'" in (join / ".env").read_text()
        lines = await here.later().run(*STEPS)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert sorted(path.name for path in join.iterdir()) == sorted(NAMES)


async def test_another_file_is_kept_and_comes_back(tmp_path: Path) -> None:
    """Its differences are shown without any password, and rollback puts it in its place, unless it was changed since."""
    async with on_disk(tmp_path) as here:
        join = here.disk / "gonka" / "deploy" / "join"
        join.mkdir(parents=True)
        (join / "config.env").write_text(
            "export KEY_NAME=old\nexport KEYRING_PASSWORD=older secret\nHF_TOKEN=hidden\n# hidden\nexport KEYRING_BACKEND='file'\n"
            "KEY='hidden\nMFRGGhidden==\nMFRGG222==\n'\n"
        )
        plan = await here.plan(STEPS[0])
        assert "-export KEY_NAME=…" in plan.diff
        assert "-HF_TOKEN=…\n-…\n export KEYRING_BACKEND='file'" in plan.diff
        assert not any(word in f"{plan!r}" for word in ("hidden", "MFRGG", "=old"))
        assert "+export KEY_NAME='quick-newton'" in plan.diff
        assert "older secret" not in f"{plan!r}"
        assert PASSWORD not in f"{plan!r}"
        await here.run(STEPS[0])
        [undo] = here.host.journal.undos
        await here.host.connection.run(undo.command())
        assert (join / "config.env").read_text().startswith("export KEY_NAME=old")
        assert (await here.host.connection.run(undo.command())).exit_code == 0
        await here.later().run(STEPS[0])
        (join / "config.env").write_text("edited since")
        said = await here.host.connection.run(undo.command())
        assert said.exit_code == STILL_THERE
        assert "was changed since" in said.stdout
        assert (join / "config.env").read_text() == "edited since"


async def test_no_hash_tells_a_password(tmp_path: Path) -> None:
    """Neither of the file that is there nor of ours: names of copies, the log and the list of what is taken back have none of it."""
    async with on_disk(tmp_path) as here:
        join = here.disk / "gonka" / "deploy" / "join"
        join.mkdir(parents=True)
        old = "export KEYRING_PASSWORD='older secret'\n"
        (join / "config.env").write_text(old)
        await here.run(STEPS[0])
        ours = (join / "config.env").read_bytes()
        seen = f"{here.console.getvalue()} {here.host.journal.path.read_text()} {sorted(join.iterdir())}"
        seen += "".join(here.server.commands)
        for text in (old.encode(), ours):
            assert sha256(text).hexdigest()[:12] not in seen
        # One that differs by the password alone is another one, which is kept and comes back.
        other = ours.replace(PASSWORD.encode(), b"another password")
        (join / "config.env").write_bytes(other)
        assert "[OK] config.env" in "\n".join(await here.later().run(STEPS[0]))
        undo = here.later().host.journal.undos[-1]
        for _ in range(2):
            assert (await here.host.connection.run(undo.command())).exit_code == 0
            assert (join / "config.env").read_bytes() == other


async def test_an_edited_password_is_seen_by_rollback(tmp_path: Path) -> None:
    """By a hash of the whole file, which lies on the server for its owner alone and is in no word, log or list."""
    async with on_disk(tmp_path) as here:
        here.join.mkdir(parents=True)
        await here.run(STEPS[0])
        file = here.join / "config.env"
        first = file.read_text()
        noted = Path(here.host.state_dir) / "node-files"
        assert noted.read_text() == f"{sha256(first.encode()).hexdigest()}\n"
        assert stat.S_IMODE(noted.stat().st_mode) == 0o600
        [undo] = here.host.journal.undos
        file.write_text(first.replace(PASSWORD, "another password"))
        said = await here.host.connection.run(undo.command())
        assert said.exit_code == STILL_THERE
        assert "was changed since" in said.stdout
        assert "another password" in file.read_text()
        # An undo that an older version wrote down knows of no such file.
        older = replace(undo, words=undo.words[:-1])
        assert (await here.host.connection.run(older.command())).exit_code == 0
        assert not file.exists()


async def test_each_file_of_ours_is_taken_back(tmp_path: Path) -> None:
    """Also behind one with another password."""
    async with on_disk(tmp_path) as here:
        here.join.mkdir(parents=True)
        await here.run(STEPS[2])
        other = replace(
            here.host.conf, keyring_password=Secret("KEYRING_PASSWORD", "another password")
        )
        here.fakes.secret("another password")
        await run_steps(replace(here.later().host, conf=other), [STEPS[2]], now=lambda: "now")
        undos = here.later().host.journal.undos
        assert len(undos) == 2
        for undo in undos[::-1]:
            assert (await here.host.connection.run(undo.command())).exit_code == 0
        assert list(here.join.iterdir()) == []


async def test_a_copy_is_whole_or_is_not(tmp_path: Path) -> None:
    """A full disk, or a run that was cut, leaves none under its name."""
    async with on_disk(tmp_path) as here:
        here.join.mkdir(parents=True)
        (here.join / ".env").write_text("OLD=1\n")
        half = here.fakes.folder / "half"
        half.mkdir()
        (half / "cp").write_text('#!/bin/sh\nfor to; do :; done\nprintf O > "$to"\nexit 1\n')
        (half / "cp").chmod(0o755)
        path = here.server.env.get("PATH", here.fakes.env["PATH"])
        here.server.env["PATH"] = f"{half}:{path}"
        with pytest.raises(StepFailed):
            await here.run(STEPS[2])
        assert (here.join / ".env").read_text() == "OLD=1\n"
        assert not [path for path in here.join.glob(".env.pocqueue-*") if len(path.name) > 60]
        here.server.env["PATH"] = path
        await here.later().run(STEPS[2])
        [copy] = [path for path in here.join.glob(".env.pocqueue-*") if len(path.name) > 60]
        assert copy.read_text() == "OLD=1\n"


@pytest.mark.parametrize(("name", "mode"), [(".env", 0o600), ("node-config.json", 0o644)])
async def test_a_kept_password_is_for_its_owner_alone(name: str, mode: int, tmp_path: Path) -> None:
    """Whoever could read the file of before, or an older copy of it; what has no password stays as it was."""
    async with on_disk(tmp_path) as here:
        here.join.mkdir(parents=True)
        for each in (name, f"{name}.pocqueue-{'0' * 64}"):
            (here.join / each).write_text("KEYRING_PASSWORD=older secret\n")
            (here.join / each).chmod(0o644)
        await here.run(HasNodeFile(name))
        kept = list(here.join.glob(f"{name}.pocqueue-*"))
        assert [stat.S_IMODE(path.stat().st_mode) for path in kept] == [mode, mode]


async def test_a_file_of_ours_goes_where_there_was_none(tmp_path: Path) -> None:
    """By rollback."""
    async with on_disk(tmp_path) as here:
        join = here.disk / "gonka" / "deploy" / "join"
        join.mkdir(parents=True)
        await here.run(STEPS[1])
        [undo] = here.host.journal.undos
        await here.host.connection.run(undo.command())
        assert list(join.iterdir()) == []


async def test_a_full_disk_leaves_no_half_a_file(tmp_path: Path) -> None:
    """The file of before stays as it was; the next run goes on once there is space."""
    async with on_disk(tmp_path) as here:
        here.join.mkdir(parents=True)
        (here.join / "config.env").write_text("theirs\n")
        here.server.sftp_full = True
        with pytest.raises(StepFailed, match=r"No space left .*is as it was"):
            await here.run(*STEPS)
        assert (here.join / "config.env").read_text() == "theirs\n"
        assert not any((here.join / name).exists() for name in NAMES[1:])
        here.server.sftp_full = False
        lines = await here.later().run(*STEPS)
        assert len([line for line in lines if line.startswith("[OK] ")]) == len(NAMES)
        assert not list(here.join.glob("*tmp*"))


async def test_a_link_in_the_place_is_not_followed(tmp_path: Path) -> None:
    """It could lead anywhere."""
    async with on_disk(tmp_path) as here:
        join = here.disk / "gonka" / "deploy" / "join"
        join.mkdir(parents=True)
        (join / ".env").symlink_to(tmp_path / "target")
        with pytest.raises(StepFailed, match="is a symbolic link"):
            await here.plan(STEPS[2])


HARD = 'a b"c$d`e#f;g&h|i<j>(k)*?~!=%{}[]:,.-_@^+é'


@pytest.mark.parametrize("password", [HARD, "$(touch x) ${HOME} `id`", "# no comment ", "x" * 128])
def test_the_password_arrives_byte_for_byte(password: str, tmp_path: Path) -> None:
    """Through bash, which sources the one file, and through the reader of the other."""
    shown = conf(tmp_path, KEYRING_PASSWORD=f"'{password}'")
    files = {file.name: file for file in node_files(shown)}
    (tmp_path / "config.env").write_text(files["config.env"].text)
    (tmp_path / ".env").write_text(files[".env"].text)
    script = '. ./config.env; printf %s "$KEYRING_PASSWORD"; env | grep -c ^KEYRING_PASSWORD='
    bash = ("bash", "-euc", script)
    said = subprocess.run(bash, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert said.stdout.decode() == f"{password}1\n"
    # As compose reads single quotes; this reader would replace ${…} within them.
    assert dotenv_values(tmp_path / ".env", interpolate=False)["KEYRING_PASSWORD"] == password
    assert password not in f"{files!r} {files['.env'].shown}"
    assert not (tmp_path / "x").exists()


def test_variables_of_a_node(tmp_path: Path) -> None:
    """Addresses of the seed and of the server, and two servers to trust that differ."""
    found = variables(
        conf(tmp_path, SEED_API_URL="http://node1.gonka.ai:8000", SERVER_IP="2001:db8::1")
    )
    assert found["P2P_EXTERNAL_ADDRESS"] == "tcp://[2001:db8::1]:5000"
    assert found["SEED_NODE_P2P_URL"] == "tcp://node1.gonka.ai:5000"
    assert found["RPC_SERVER_URL_1"] == "http://node1.gonka.ai:8000/chain-rpc/"
    assert found["RPC_SERVER_URL_2"] == "http://node2.gonka.ai:8000/chain-rpc/"
    assert found["DAPI_API__POC_CALLBACK_URL"] == "http://api:9100"
    assert isinstance(found["KEYRING_PASSWORD"], Secret)
    assert all(shlex.quote(name) == name for name in found)


def test_without_a_password_nothing_is_written(tmp_path: Path) -> None:
    """It has to be asked for first."""
    with pytest.raises(DeployError, match="KEYRING_PASSWORD is not known"):
        node_files(conf(tmp_path, KEYRING_PASSWORD=None))


def test_profiles(tmp_path: Path) -> None:
    """One GPU, or two instances on four each; or the operator's own file."""
    for profile, size in (("x1", "1"), ("x8", "4")):
        [node] = json.loads(node_config(conf(tmp_path, NODE_CONFIG_PROFILE=profile)))
        assert node["models"]["Qwen/Qwen3-32B-FP8"]["args"] == ["--tensor-parallel-size", size]
    own = [node | {"max_concurrent": 7}]
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert json.loads(node_config(conf(tmp_path, NODE_CONFIG_PROFILE="own.json"))) == own


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '[{"id": "a"}]',
        '[{"id": "a", "host": "b", "inference_port": 0, "poc_port": 1, "max_concurrent": 1, "models": {}}]',
        '[{"id": "a", "host": "b", "inference_port": 1, "poc_port": 1, "max_concurrent": 1, "models": {"x/y": {}}}]',
        '[{"id": "a", "host": "b", "inference_port": 1, "poc_port": 1, "max_concurrent": 1, "models": {"Qwen/Qwen3-32B-FP8": {"args": [1]}}}]',
    ],
)
def test_a_profile_that_is_none(text: str, tmp_path: Path) -> None:
    """One sentence with what is allowed."""
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(DeployError, match="is no list of nodes"):
        node_config(conf(tmp_path, NODE_CONFIG_PROFILE="own.json"))
