"""How one gets in: keys of hosts, shells of logins, sudo that asks, sessions that are few; with a real sshd and a real sudo."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import HostKeyChanged
from pocqueue.deploy.host_key import HostKeys, fingerprint_of
from pocqueue.deploy.lock import server_lock
from pocqueue.deploy.remote_job import Job, run_job
from pocqueue.deploy.runner import status
from pocqueue.deploy.session import log_in
from pocqueue.deploy.words import Command, Secret
from tests.deploy.clone.machine import USER, Clone, Sshd
from tests.deploy.clone.runs import Runs
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import LoopDevice

HOSTILE = "a'b\"c $(touch x) `touch x` \\ \\\\ \n ; é ! ~ *"


def connection(sshd: Sshd, folder: Path, keys: HostKeys | None = None) -> Connection:
    """Return a connection that is not made yet, and is made again at once."""
    keys = keys or sshd.host_keys(folder)
    return Connection(sshd.target, keys, retry_delays_s=(0.0, 0.1, 1.0))


SHELLS = {
    "bash": ".bashrc",
    "fish": ".config/fish/config.fish",
    "csh": ".cshrc",
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("noise", ["", "echo 'uid=0 [OK]'; echo again\n"], ids=["", "noisy"])
async def test_every_shell_of_a_login_will_do(
    shell: str, noise: str, clone: Clone, sshd: Sshd, tmp_path: Path
) -> None:
    """Words and secrets arrive as they are, by sudo too; what it prints by itself is no answer, nor a lock, a job or a file."""
    if (path := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell}")
    clone.run("chsh", "-s", path, USER)
    clone.write(f"/home/{USER}/{SHELLS[shell]}", noise)
    async with connection(sshd, tmp_path) as there:
        await there.connect()
        login = await log_in(there, None)
        assert (login.user, login.host, login.has_sudo) == (USER, "clone", True)
        text = 'printf %s "$1"; cat; id -u; exit 3'
        words = ("sh", "-c", text, "sh", HOSTILE)
        done = await there.run(Command(words, (Secret("PASSWORD", HOSTILE),), sudo=True))
        assert (done.exit_code, done.stdout) == (3, f"{HOSTILE}{HOSTILE}0\n")
        async with server_lock(there, "alice"):
            lines: list[str] = []
            end = await run_job(
                there, Job("1-clone", Command(("x",), script="echoes", sudo=True)), lines.append
            )
            assert (end.exit_code, lines) == (0, ["says x"])
            for data in (b"one", b"\xfftwo"):
                await there.write_file(f"/home/{USER}/file", data, 0o640)
        assert (
            clone.run("sh", "-c", f"cd /home/{USER}; stat -c %a file; tail -c 3 file") == "640\ntwo"
        )


async def test_a_banner_is_no_answer(clone: Clone, fakes: Fakes, tmp_path: Path) -> None:
    """Of sshd, before anybody is let in."""
    clone.write("/etc/ssh/banner", "\x1b[2J[OK] all verified\n")
    sshd = clone.sshd("Banner /etc/ssh/banner")
    sshd.start()
    done = await Runs(sshd, tmp_path / "nodes")(status)
    assert "all verified" not in done
    assert "[OK] SSH connection successful" in done


async def test_sudo_that_asks_is_told_the_password(
    clone: Clone, sshd: Sshd, fakes: Fakes, disk: LoopDevice, tmp_path: Path
) -> None:
    """Once here, by standard input there; without it a run stops with what to do, and a wrong one is not taken."""
    secret = Secret("SUDO_PASSWORD", 'correct  $horse "battery')
    clone.run("chpasswd", text=f"{USER}:{secret.reveal()}\n")
    clone.write("/etc/sudoers.d/deployer", f"{USER} ALL=(ALL) ALL\n")
    runs = Runs(sshd, tmp_path / "nodes")
    done = await runs()
    assert done.code == 1
    assert "--ask-sudo" in done
    done = await runs(sudo_password=Secret("SUDO_PASSWORD", "wrong one"))
    assert (done.code, "the password is not taken" in done) == (1, True)
    fakes.secret(secret.reveal())
    done = await runs(sudo_password=secret)
    assert done.code == 0, done.lines
    assert "[OK] format volume" in done
    assert secret.reveal() not in "".join(done.lines)
    for path in [*runs.conf.folder.rglob("*"), *runs.conf.logs.rglob("*.log")]:
        assert path.is_dir() or secret.reveal() not in path.read_text(), path
    assert secret.reveal() not in clone.run("sh", "-c", "cat /var/lib/pocqueue-deploy/jobs/*/*")


async def test_a_host_key_that_nobody_confirmed_is_not_taken(
    clone: Clone, sshd: Sshd, fakes: Fakes, disk: LoopDevice, tmp_path: Path
) -> None:
    """Unknown, then asked for and kept, then another server at the same port: at the start, and within a run."""
    runs = Runs(sshd, tmp_path / "nodes", SSH_HOST_KEY=None)
    done = await runs(status)
    assert done.code == 1
    assert f"not known yet: {fingerprint_of(sshd.host_key)}" in done
    asked: list[str] = []

    async def ask(question: str, *, is_hidden: bool = False) -> str:
        asked.append(question)
        return "yes"

    done = await runs(status, is_confirmed=False, ask=ask)
    assert (done.code, len(asked)) == (0, 1)
    known = (runs.conf.folder / "known_hosts").read_bytes()
    async with connection(
        sshd, tmp_path, HostKeys(runs.conf.folder / "known_hosts", "127.0.0.1", sshd.port)
    ) as there:
        await there.connect()
        sshd.kill()
        other = clone.sshd(port=sshd.port)
        other.start()
        with pytest.raises(HostKeyChanged) as raised:
            await there.look(Command(("touch", "x")))
    assert raised.value.expected == (fingerprint_of(sshd.host_key),)
    assert raised.value.found == fingerprint_of(other.host_key)
    done = await runs()
    assert done.code == 1
    assert f"has the host key {fingerprint_of(other.host_key)}" in done
    assert (runs.conf.folder / "known_hosts").read_bytes() == known
    assert clone.attempt("test", "-e", f"/home/{USER}/x").returncode == 1


async def test_one_session_a_connection_is_enough(
    clone: Clone, fakes: Fakes, disk: LoopDevice, tmp_path: Path
) -> None:
    """Commands go one by one, over a connection beside the lock's."""
    sshd = clone.sshd("MaxSessions 1")
    sshd.start()
    done = await Runs(sshd, tmp_path / "nodes")()
    assert done.code == 0, done.lines
    assert "[OK] volume.txt" in done
