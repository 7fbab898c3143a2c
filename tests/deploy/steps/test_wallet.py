"""The warm wallet: made once, its words safely here before they are away there, and the password seen by nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from pocqueue.deploy import engine
from pocqueue.deploy.engine import NotYet
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.steps.wallet import WarmAddressFile, WarmKeyFile, WarmWallet
from pocqueue.deploy.words import Command
from tests.deploy.fake_programs import hash_of
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import MNEMONIC, OnDisk, kinds, on_disk
from tests.support.waiting import until

ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
OTHER = "gonka1rk52j24xj9ej87jas4zqpvjuhrgpnd7h3feqmm"
STEPS = (WarmWallet(), WarmKeyFile(), WarmAddressFile())
HARD = 'y "c$d`e#f;g&h|i<j>(k)*?~!=%{}[]:,.-_@^+é '


def there(here: OnDisk) -> Path:
    """Return our folder on the server."""
    return here.server.root / "state" / "wallet" / "quick-newton"


def answers(here: OnDisk) -> list[Path]:
    """Return the files there that have words."""
    return [path for path in there(here).iterdir() if MNEMONIC in path.read_text()]


def has_words(here: OnDisk) -> bool:
    """Return whether the words are here, for their owner alone."""
    path = here.host.conf.folder / "warm_key.txt"
    return MNEMONIC in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600


def made(here: OnDisk) -> list[str]:
    """Return the names of the keys that were made, each time."""
    return here.fakes.state("keys-added").split()


async def test_a_wallet_is_made_once(tmp_path: Path) -> None:
    """Its words and its address are here, and the words are away there; a second run changes nothing, and asks nothing."""
    async with on_disk(tmp_path) as here:
        with pytest.raises(NotYet, match=r"docker-compose\.yml is there"):
            await STEPS[0].look(here.host)
        here.has_project()
        plan = await here.plan(STEPS[0])
        assert (plan.is_final, plan.actions[0].shown().endswith("< ‹KEYRING_PASSWORD›")) == (
            True,
            True,
        )
        lines = await here.run(*STEPS)
        assert f"[OK] warm wallet: quick-newton, {ADDRESS}" in lines
        assert has_words(here)
        assert (here.host.conf.folder / "warm_address.txt").read_text() == f"{ADDRESS}\n"
        assert answers(here) == []
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[EXEC]", "[OK]"}
        num_calls = len(here.fakes.calls("inferenced"))
        again = await here.later().run(*STEPS)
        assert kinds(again) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert len(here.fakes.calls("inferenced")) == num_calls
        assert made(here) == ["quick-newton"]


@pytest.mark.parametrize("password", [HARD, "$(touch x) ${HOME} `id`", "y" * 128, "  # blanks  "])
async def test_the_password_arrives_byte_for_byte(password: str, tmp_path: Path) -> None:
    """By standard input alone: no word, no variable and no list of processes has it."""
    async with on_disk(tmp_path, KEYRING_PASSWORD=f"'{password}'") as here:
        here.has_project()
        here.fakes.set("see")
        await here.run(*STEPS)
        add, show = here.fakes.calls("inferenced")
        assert add.words[:3] == ("keys", "add", "quick-newton")
        assert add.stdin_hash == hash_of(f"{password}\n{password}\n")
        assert show.stdin_hash == hash_of(f"{password}\n")
        seen = here.fakes.state("seen")
        assert "inferenced keys add quick-newton" in seen
        assert password not in seen
        for path in [*here.disk.rglob("*"), *here.server.root.rglob("*")]:
            assert not path.is_file() or password.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("on", ["stdout", "stderr"])
async def test_an_old_keyring_is_asked_otherwise(on: str, tmp_path: Path) -> None:
    """Its second question would be whether to overwrite: a password that begins with y is no answer to that."""
    password = "yes, overwrite"
    async with on_disk(tmp_path, KEYRING_PASSWORD=f"'{password}'") as here:
        here.has_project()
        here.fakes.set("words-on", on)
        add = ("inferenced", "keys", "add", "other", "--keyring-backend", "file")
        home = {"INFERENCE_HOME": str(here.join / ".inference")}
        assert here.fakes.run(*add, text=f"{password}\n" * 2, env=home).returncode == 0
        await here.run(*STEPS)
        assert here.fakes.calls("inferenced")[1].stdin_hash == hash_of(f"{password}\nn\n")
        assert has_words(here)
        # As if somebody had made one of this name between the look and the command.
        [command] = (await here.plan(STEPS[0])).actions
        assert isinstance(command, Command)
        said = await here.host.connection.run(command)
        assert (said.exit_code, "never overwritten" in said.stdout) == (66, True)
        assert here.fakes.state("overridden") == ""


@pytest.mark.parametrize(
    "others",
    [
        *((), ("docker-compose.override.yml",), ("docker-compose.override.yaml",)),
        *(("compose.override.yaml",), ("compose.override.yml", "docker-compose.override.yml")),
    ],
)
async def test_no_log_of_dockers_has_the_words(others: tuple[str, ...], tmp_path: Path) -> None:
    """Its log driver would write them to files, or to another machine; the operator's own overrides count on."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        for name in others:
            (here.join / name).write_text("services:\n  api:\n    restart: always\n")
        await here.run(WarmWallet())
        [add] = [call for call in here.fakes.calls("docker") if "add" in call.words]
        words = add.words[1 : add.words.index("run")]
        # Of several compose takes the first, too.
        assert words[::2] == ("-f",) * (2 + len(others[:1]))
        assert words[1::2] == ("docker-compose.yml", *others[:1], str(there(here) / "no-log.yml"))
        assert here.fakes.state("logged") == ""
        assert made(here) == ["quick-newton"]


async def test_words_that_are_lost_are_told(tmp_path: Path) -> None:
    """A key whose file is gone is used, with a warning each time; no other one is made."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(*STEPS)
        (here.host.conf.folder / "warm_key.txt").unlink()
        lines = await here.later().run(*STEPS)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]", "[WARN]"}
        [warning] = [line for line in lines if line.startswith("[WARN]")]
        assert "are not to be had again" in warning
        assert made(here) == ["quick-newton"]


async def test_words_may_stay_on_the_server(tmp_path: Path) -> None:
    """For root alone; a later run fetches them."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        lines = await here.run(WarmWallet(), WarmKeyFile(stays=True), WarmAddressFile())
        assert "[WARN]" not in kinds(lines)
        assert not (here.host.conf.folder / "warm_key.txt").exists()
        [path] = answers(here)
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o600, os.getuid())
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await here.later().run(*STEPS)
        assert has_words(here)
        assert answers(here) == []


async def test_words_arrive_byte_for_byte(tmp_path: Path) -> None:
    """What is written here is what was hashed, in whatever encoding."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(WarmWallet())
        with (there(here) / "answer").open("ab") as file:
            file.write(b"caf\xe9\n")
        said = (there(here) / "answer").read_bytes()
        await here.later().run(*STEPS)
        assert (here.host.conf.folder / "warm_key.txt").read_bytes() == said
        assert answers(here) == []


async def test_another_wallet_is_left_alone(tmp_path: Path) -> None:
    """The server's key has another address than the files here; or there are files here, and no key."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        folder = here.host.conf.folder
        for name, text in (
            ("warm_address.txt", OTHER),
            ("warm_key.txt", f"- address: {OTHER}\n{MNEMONIC}"),
        ):
            (folder / name).write_text(text)
            with pytest.raises(StepFailed, match="the server has no key quick-newton, but"):
                await here.later().run(*STEPS)
            (folder / name).unlink()
        assert made(here) == []
        await here.later().run(*STEPS)
        for name in ("warm_address.txt", "warm_key.txt"):
            before = (folder / name).read_text()
            (folder / name).write_text(f"- address: {OTHER}\n")
            with pytest.raises(StepFailed, match=f"has files of .*{OTHER}"):
                await here.later().run(*STEPS)
            assert OTHER in (folder / name).read_text()
            (folder / name).write_text(before)
        assert "[SKIP]" in kinds(await here.later().run(*STEPS))


async def test_other_words_here_are_not_written_over(tmp_path: Path) -> None:
    """They may be the only copy, and so may those that wait."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(WarmWallet())
        file = here.host.conf.folder / "warm_key.txt"
        file.write_text(f"{ADDRESS}\nmy notes\n")
        with pytest.raises(StepFailed, match="compare the two"):
            await here.later().run(*STEPS)
        assert "my notes" in file.read_text()
        assert len(answers(here)) == 1


async def test_a_keyring_with_another_password(tmp_path: Path) -> None:
    """Said in one sentence; nothing is made. With the right one it goes on."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        add = ("inferenced", "keys", "add", "other", "--keyring-backend", "file")
        home = {"INFERENCE_HOME": str(here.join / ".inference")}
        assert here.fakes.run(*add, text="another one\n" * 2, env=home).returncode == 0
        with pytest.raises(StepFailed, match="another password than KEYRING_PASSWORD"):
            await here.run(*STEPS)
        ring = here.join / ".inference" / "keyring-file"
        (ring / "quick-newton.info").write_text(ADDRESS)
        with pytest.raises(StepFailed, match="another password than KEYRING_PASSWORD"):
            await here.later().run(*STEPS)
        assert made(here) == ["other"]


async def test_a_full_disk(tmp_path: Path) -> None:
    """The keyring's: named, and made once there is space. Ours: nothing is begun whose answer could not be kept."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.fakes.set("keys", "full")
        with pytest.raises(StepFailed, match="no key quick-newton: the disk is full"):
            await here.run(*STEPS)
        assert made(here) == []
        here.fakes.unset("keys")
        full = tmp_path / "full"
        full.mkdir()
        (full / "sync").write_text('#!/bin/sh\necho "sync: No space left on device" >&2\nexit 1\n')
        (full / "sync").chmod(0o755)
        here.server.env["PATH"] = f"{full}:{here.fakes.env['PATH']}"
        with pytest.raises(StepFailed) as caught:
            await here.later().run(*STEPS)
        assert (caught.value.exit_code_there, "no space" in caught.value.tail[0]) == (70, True)
        assert made(here) == []
        here.server.env.pop("PATH")
        await here.later().run(*STEPS)
        assert has_words(here)


@pytest.mark.parametrize(
    ("pattern", "drop"),
    [
        *[(r"new_key ", drop) for drop in ("before", "during", "after")],
        *[(r"wallet_facts ", drop) for drop in ("before", "after")],
        *[(r"key_answer read", drop) for drop in ("before", "during", "after")],
        *[(r"key_answer drop", drop) for drop in ("before", "after")],
        *[(r"keys show", drop) for drop in ("before", "after")],
    ],
)
async def test_a_connection_that_breaks(pattern: str, drop: str, tmp_path: Path) -> None:
    """Wherever it does: one key, its words here, and none there."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        fault = Fault(pattern, drop=drop)  # type: ignore[arg-type]
        if (pattern, drop) == (r"new_key ", "during"):
            # The key is made, and its words are out: they are on their way when it breaks.
            here.fakes.set("keys", "late")
            fault.when = lambda: made(here)
        here.server.fault(fault)
        running = asyncio.create_task(here.run_on(*STEPS))
        await until(lambda: here.server.num_connections > 1 or running.done())
        here.fakes.set("keys-go")
        await running
        assert fault.times == 0
        assert made(here) == ["quick-newton"]
        assert has_words(here)
        assert answers(here) == []
        assert (here.host.conf.folder / "warm_address.txt").read_text() == f"{ADDRESS}\n"


async def test_words_that_cannot_be_kept_here_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives is another text, or this disk is full: they are removed there only when they are here."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.server.fault(Fault(r"key_answer read", prints=b"hello "))
        with pytest.raises(StepFailed, match="did not arrive as it was seen before"):
            await here.run(*STEPS)

        def full(*_args: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(engine, "replace_file", full)
            with pytest.raises(StepFailed, match="No space left on device"):
                await here.later().run(*STEPS)
        assert len(answers(here)) == 1
        assert not (here.host.conf.folder / "warm_key.txt").exists()
        await here.later().run(*STEPS)
        assert has_words(here)
        assert answers(here) == []
        assert made(here) == ["quick-newton"]


async def test_a_unit_of_systemds_makes_it(tmp_path: Path) -> None:
    """Where that runs the server: the password goes to the unit by its standard input, and its end is waited for."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        programs = tmp_path / "programs"
        programs.mkdir()
        run = programs / "systemd-run"
        run.write_text(
            f'#!/bin/sh\necho "$*" | head -n 1 > {tmp_path}/unit\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec setsid "$@"\n'
        )
        run.chmod(0o755)
        [command] = (await here.plan(STEPS[0])).actions
        assert isinstance(command, Command)
        argv = [word.replace("/run/systemd/system", str(programs)) for word in command.argv()]
        env = {"PATH": f"{programs}:{here.fakes.env['PATH']}"}
        done = here.fakes.run(*argv, text=command.input().decode(), env=env)
        assert (done.returncode, done.stdout) == (0, "")
        words = (tmp_path / "unit").read_text().split(" -- ")[0]
        options, _, unit = words.partition(" --setenv HOME=")
        assert options == "--quiet --collect --pipe --wait"
        assert unit.endswith(" --unit pocqueue-deploy-key-quick-newton")
        assert len(answers(here)) == 1
        await here.later().run(*STEPS)
        assert (made(here), has_words(here)) == (["quick-newton"], True)


async def test_words_of_a_program_that_was_killed_are_found(tmp_path: Path) -> None:
    """With all that waited for it, as when the server is switched off: they were out, and are fetched."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        here.fakes.set("keys", "killed")
        lines = await here.run(*STEPS)
        assert "[OUTPUT] it ended with exit code 137; whether there is a key is looked at" in lines
        assert made(here) == ["quick-newton"]
        assert has_words(here)
        assert answers(here) == []
