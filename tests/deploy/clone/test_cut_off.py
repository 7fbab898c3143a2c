"""What breaks from outside: sshd ends, a run is killed, two runs at once; with a real sshd."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.lock import server_lock
from pocqueue.deploy.remote_job import Job, run_job
from pocqueue.deploy.session import log_in
from pocqueue.deploy.words import Command
from tests.deploy.clone.machine import Clone, Sshd
from tests.deploy.clone.runs import IGNORED, Runs
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import LoopDevice
from tests.support.waiting import until, wait_until


async def test_a_job_outlives_sshd(clone: Clone, sshd: Sshd, tmp_path: Path) -> None:
    """It goes on while nobody can connect, its whole output is read behind that, and the lock is taken again before."""
    lines: list[str] = []

    def output(text: str) -> None:
        if not lines:
            sshd.kill()
            clone.write("/run/go", "")
            wait_until(lambda: clone.attempt("test", "-e", rc).returncode == 0)
            sshd.start()
        lines.extend(text.split("\n"))

    job = Job("1-test", Command(("x",), script="waits", sudo=True))
    rc = "/var/lib/pocqueue-deploy/jobs/1-test/rc"
    keys = sshd.host_keys(tmp_path)
    async with Connection(sshd.target, keys, retry_delays_s=(0.0, 0.1, 1.0)) as there:
        await there.connect()
        await log_in(there, None)
        async with server_lock(there, "alice"):
            end = await run_job(there, job, output)
    assert (end.exit_code, lines) == (3, ["begins", "ends"])
    assert clone.run("cat", "/run/begun") == "x\n"


async def test_a_run_that_is_killed_leaves_its_job_to_the_next(
    clone: Clone, sshd: Sshd, fakes: Fakes, part: LoopDevice, tmp_path: Path
) -> None:
    """While it lives another run is told its name, from the same folder or another; its lock ends with it, and mkfs is run once."""
    wait = "echo x >> /run/begun; until [ -e /run/go ]; do sleep 0.02; done"
    clone.program("mkfs.ext4", f'{wait}; exec /usr/sbin/mkfs.ext4 "$@"')
    runs = Runs(sshd, tmp_path / "nodes", VOLUME_DEVICE="/dev/vdc1")
    other = Runs(sshd, tmp_path / "other", VOLUME_DEVICE="/dev/vdc1")
    first = runs.command("run", "--yes", "--phase", "1", "--ignore", *IGNORED)
    try:
        wait_until(lambda: clone.attempt("test", "-s", "/run/begun").returncode == 0)
        for second in (runs, other):
            done = await second()
            assert done.code == 3
            assert f"process {first.pid}" in done
    finally:
        first.kill()
        first.communicate(timeout=60)
    next_run = asyncio.create_task(other())
    log = other.conf.logs / "quick-newton_latest.log"
    await until(lambda: log.exists() and "format_volume.sh" in log.read_text())
    clone.write("/run/go", "")
    done = await next_run
    assert done.code == 0, done.lines
    assert clone.run("cat", "/run/begun") == "x\n"
    assert "[OK] volume.txt" in done
