"""A bare server through all phases that there are: a real sshd, sudo, disk, git and processes, and fakes of what this machine has not."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from pocqueue.deploy.engine import PHASES
from pocqueue.deploy.runner import dry_run
from tests.deploy.clone.machine import Clone, Sshd
from tests.deploy.clone.runs import Runs
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import LoopDevice
from tests.deploy.network import has_network
from tests.support.waiting import until

LAST = max(PHASES)


async def test_all_phases_once(
    clone: Clone, sshd: Sshd, fakes: Fakes, disk: LoopDevice, tmp_path: Path
) -> None:
    """sshd ends while the model is loaded, and the job goes on; a second run changes nothing, here or there."""
    runs = Runs(sshd, tmp_path / "nodes")
    has_network(fakes, runs.conf)
    fakes.set("hf", "stalls")
    run = asyncio.create_task(runs(last=LAST))
    log = runs.conf.logs / "quick-newton_latest.log"
    await until(lambda: run.done() or (log.exists() and "load_model.sh" in log.read_text()))
    await asyncio.to_thread(sshd.kill)
    fakes.set("hf-go")
    await asyncio.to_thread(sshd.start)
    done = await run
    assert done.code == 0, done.lines[-20:]
    folder = runs.conf.folder
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    begun_s = time.monotonic()
    again = await runs(last=LAST)
    logging.getLogger(__name__).info("a second run took %.1f s", time.monotonic() - begun_s)
    assert (again.code, again.of("EXEC", "OUTPUT", "ERROR")) == (0, [])
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    planned = await runs(dry_run)
    assert planned.lines[-1].startswith("[INFO] 0 steps to change, ")
    assert clone.run("stat", "-c", "%a %U", "/var/lib/pocqueue-deploy").strip() == "700 root"
