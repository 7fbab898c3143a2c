"""All steps on a mounted disk with a connection that breaks anywhere: the same server comes of it as of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from hypothesis import Phase, given, settings, strategies as st

from pocqueue.deploy.steps import all_steps
from tests.deploy.network import has_network
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk

Drop = Literal["before", "during", "after"]
Cut = tuple[int, Drop]
DROPS: tuple[Drop, ...] = ("before", "during", "after")
_FOLDER = tempfile.TemporaryDirectory(prefix="cut-off-")
#: What has times in it, or names of processes.
_VOLATILE = re.compile(
    r"/(\.git|jobs)/|/lock|/state\.json$|/\.lock$|\.pocqueue-verified$|/__pycache__/"
)


def files(folder: Path, base: Path) -> dict[str, str]:
    """Return what is below a folder, by names; where it lies is of no meaning."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(base))
        if _VOLATILE.search(f"/{name}/") or _VOLATILE.search(f"/{name}"):
            continue
        kind = f"{path.lstat().st_mode:o}"
        if path.is_symlink():
            kind += f" {path.readlink()}"
        elif path.is_file() and path.suffix != ".tar":
            kind += sha256(path.read_bytes()).hexdigest()
        found[name] = kind
    return found


async def outcome(cuts: Sequence[Cut]) -> tuple[dict[str, str], int]:
    """Return what there is after runs whose connection breaks, here and there, and the number of commands."""
    # Always the same: paths are in files, and hashes of files are names of others.
    base = Path(_FOLDER.name) / "run"
    base.mkdir()
    try:
        async with on_disk(base) as here:
            has_network(here.fakes, here.host.conf)
            steps = [step for step in all_steps(here.host.conf) if step.phase >= 2]
            here.server.faults += [Fault(".", after=after, drop=drop) for after, drop in cuts]
            await here.run_on(*steps)
            num_commands = len(here.server.commands)
            assert kinds(await here.later().run(*steps)) <= {
                "[INFO]",
                "[CHECK]",
                "[SKIP]",
                "[WARN]",
            }
            happened_once(here)
            folders = (here.disk, here.host.conf.folder, here.server.root / "state")
            found = {name: what for folder in folders for name, what in files(folder, base).items()}
            journal = json.loads((here.host.conf.folder / "state.json").read_text())
            found["undo"] = json.dumps(journal["undo"])
            return found, num_commands
    finally:
        shutil.rmtree(base)


def happened_once(here: OnDisk) -> None:
    """Look at what must not happen twice."""
    assert here.fakes.state("keys-added") == "quick-newton\n"
    assert len(here.fakes.state("registered").splitlines()) == 1
    assert here.fakes.state("volumes-removed") == ""
    loaded = [line.split()[0] for line in here.fakes.state("loaded").splitlines()]
    assert len(loaded) == len(set(loaded)) == 4


@cache
def undisturbed() -> tuple[dict[str, str], int]:
    """Return what an undisturbed run leaves, and how many commands it takes."""
    return asyncio.run(outcome(()))


@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_runs_that_are_cut_end_as_one_that_is_not(data: st.DataObject) -> None:
    """Before, while, or after any of their commands has run, up to four times."""
    wanted, num_commands = undisturbed()
    points = st.tuples(st.integers(0, num_commands - 1), st.sampled_from(DROPS))
    cuts = data.draw(st.lists(points, min_size=1, max_size=4))
    found, _ = asyncio.run(outcome(cuts))
    assert found == wanted
