"""An update of pocqueue on a server, while a round runs: real workers, started by their units' own lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.rounds.spec import RoundState
from tests.deploy.stack.on_server import OnServer, on_server, wheel
from tests.support.rounds import check_books
from tests.support.stack import QUICK, Stack

QUEUES = ("quick-newton.gpu0", "quick-newton.gpu1")
UNITS = tuple(f"pocqueue-worker@gpu{number}.service" for number in (0, 1))


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A scheduler and Redis alone: every worker is one of the server's units."""
    stack = Stack(tmp_path_factory.mktemp("stack"), variables=QUICK)
    try:
        stack.scheduler()
        yield stack
    finally:
        stack.close()


def programs(folder: Path) -> Path:
    """Make the programs of a version: this one's."""
    folder.mkdir()
    for name in ("celery", "pocqueue"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n')
        path.chmod(0o755)
    return folder


def counted_by(stack: Stack, round_id: str, above: int) -> set[str]:
    """Return the queues that nonces from an index on were counted by."""
    entries = stack.backend.store.iter_proofs(stack.status(round_id))
    return {entry.queue for entry in entries if max(entry.proofs.nonces, default=-1) >= above}


@pytest.mark.long
async def test_an_update_loses_no_nonce_and_counts_none_twice(stack: Stack, tmp_path: Path) -> None:
    """Two workers are updated one by one: what they held goes back at once, and a round goes on to its end."""
    async with on_server(tmp_path, programs(tmp_path / "programs")) as here:
        (here.nodes / "redis-url").write_text(stack.server.url)
        (here.nodes / "more").write_text(
            "POCQUEUE_DEVICE=cpu\nPOCQUEUE_NUM_THREADS=1\nPOCQUEUE_DTYPE=float32\n"
        )
        (here.nodes / "more").chmod(0o600)
        conf = here.conf(POCQUEUE_ROLE="worker", POCQUEUE_ENV_FILE="more")
        try:
            await update(here, stack, conf, tmp_path)
        finally:
            for unit in UNITS:
                here.fakes.run("systemctl", "stop", unit, env={"PATH": here.server.env["PATH"]})


async def update(here: OnServer, stack: Stack, conf: object, folder: Path) -> None:
    """Put it there, begin a round, update, and read the round's books."""
    code, lines = await here.run(conf, wheel(folder), live_s=300)  # type: ignore[arg-type]
    assert code == 0, lines[-30:]
    before = [here.pid(unit) for unit in UNITS]
    round_id = stack.start(window_s=900.0)
    stack.wait(lambda: counted_by(stack, round_id, 0) >= set(QUEUES), "both of ours to count")
    code, lines = await here.run(conf, wheel(folder, "two"), live_s=300)  # type: ignore[arg-type]
    assert code == 0, lines[-30:]
    assert not set(before) & {here.pid(unit) for unit in UNITS}
    assert not here.fakes.state("killed")
    # All that was given to a GPU up to here is counted, and the new workers count, too.
    given = stack.status(round_id).next_index
    stack.wait(
        lambda: (
            stack.backend.store.coverage(round_id)[0][1] >= given
            and counted_by(stack, round_id, given) >= set(QUEUES)
        ),
        "every nonce of before to be counted",
    )
    assert stack.backend.store.coverage(round_id)[0][0] == 0
    # Each had ranges when it was told to end, and handed them back. On a busy machine one may have none: then once more.
    version = 2
    while stack.status(round_id).ranges_returned < 2:
        version += 1
        assert version < 9, "updates hand nothing back"
        code, lines = await here.run(conf, wheel(folder, f"version-{version}"), live_s=300)  # type: ignore[arg-type]
        assert code == 0, lines[-30:]
    stack.backend.store.close(round_id, RoundState.STOPPED, "end of test")
    assert check_books(stack.backend.store, round_id).abandoned == 0
