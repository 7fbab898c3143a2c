"""Makes docs/deploy.svg: a terminal in which a run on a clone of this machine loads the model.

`python -m tests.deploy.clone.picture docs/deploy.svg` (`make deploy-picture`) runs all phases up to there with a real sshd and a real
disk, and draws the last lines of its log with the live view below them. Root only.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from pocqueue.cli.deploy_view import lines
from pocqueue.deploy.begin import Options
from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.runner import deploy, run_all
from pocqueue.deploy.standing import Standing
from pocqueue.deploy.steps import volume
from tests.deploy.clone.machine import Clone, cloned
from tests.deploy.clone.runs import IGNORED, Runs
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import loop_device
from tests.deploy.network import has_network
from tests.support.waiting import until

_WIDTH = 118
_NUM_LINES = 24
_SHARD_BYTES = 600_000_000


class _Terminal(io.StringIO):
    """Keeps what is written, with its colours."""

    @override
    def isatty(self) -> bool:
        return True


def _has_large_model(fakes: Fakes) -> None:
    folder = fakes.folder / "state" / "model"
    folder.mkdir()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(shards):
        (folder / name).write_bytes(bytes([48 + number]) * _SHARD_BYTES)
    (folder / "config.json").write_text('{"architectures":["Qwen3ForCausalLM"]}')
    index = {name[:5]: name for name in shards}
    (folder / "model.safetensors.index.json").write_text(str({"weight_map": index}))
    fakes.set("hf", "slow")


async def _draw(clone: Clone, folder: Path) -> str:
    sshd = clone.sshd()
    sshd.start()
    clone.run("sh", "-c", "echo 127.0.1.1 clone >> /etc/hosts")
    os.chdir(folder)
    runs, fakes = Runs(sshd, Path("nodes")), Fakes(clone.fakes)
    _has_large_model(fakes)
    has_network(fakes, runs.conf)
    written, standings = _Terminal(), list[Standing]()
    options = Options(is_confirmed=True, ignored=IGNORED, console=written, watch=standings.append)
    run = asyncio.create_task(run_all([runs.conf], options, deploy))
    try:
        await until(lambda: run.done() or (standings and _is_half(standings[0])), 300)
        if run.done():
            raise SystemExit(written.getvalue())
        screen = Console(record=True, file=io.StringIO(), force_terminal=True, width=_WIDTH)
        for line in written.getvalue().splitlines()[-_NUM_LINES:]:
            screen.print(Text.from_ansi(line), no_wrap=True, overflow="ellipsis")
        screen.print(lines(standings, _WIDTH))
        return screen.export_svg(title="pocqueue deploy run nodes/node1.conf")
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run


def _is_half(standing: Standing) -> bool:
    load = standing.load
    return load is not None and bool(load.bytes_per_s) and load.done_bytes * 2 > load.total_bytes


def picture() -> str:
    """Return the picture."""
    # Loop devices pass for disks.
    setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop",)))  # noqa: B010
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "disks").mkdir()
        (folder / "clone").mkdir()
        folder.chmod(0o755)
        with loop_device(folder / "disks", mib=2200) as disk, cloned(folder / "clone") as clone:
            clone.add_disk(disk.path, "vdc")
            return asyncio.run(_draw(clone, folder))


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("This needs root: it makes a clone of the machine.")
    Path(sys.argv[1]).write_text(picture())
