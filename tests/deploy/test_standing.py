"""How far a run is: rates and times of a download, also of one that was found half-way."""

from __future__ import annotations

import io

from pocqueue.deploy.log import Level, Log
from pocqueue.deploy.standing import Load, Standing
from pocqueue.deploy.words import Redactor
from tests.support.waiting import Clock

GB = 10**9


def test_a_rate_is_of_what_came_since_we_look() -> None:
    """What a job has printed before is of the past; nothing is known of a rate before two looks."""
    clock = Clock()
    load = Load(64 * GB, clock)
    for done in (0, 10 * GB, 31 * GB):
        assert load.take(f"{done} bytes")
    assert load.parts() == ("31.0 of 64.0 GB", "", "")
    clock.now_s += 5
    assert load.take(f"{32 * GB} bytes")
    assert load.parts() == ("32.0 of 64.0 GB", "200.0 MB/s", "2:40 left")
    # The last minute counts; a download that begins anew, or stalls, has no rate.
    for _ in range(20):
        clock.now_s += 5
        load.take(f"{load.done_bytes + GB // 2} bytes")
    assert load.bytes_per_s == 100e6
    clock.now_s += 5
    load.take(f"{20 * GB} bytes")
    assert load.parts() == ("20.0 of 64.0 GB", "", "")
    assert not load.take("damaged: 12 bytes")
    assert load.take(f"{70 * GB} bytes")
    assert load.done_bytes == 64 * GB


def test_a_line_is_due_now_and_then() -> None:
    """Twice a minute."""
    clock = Clock()
    load = Load(GB, clock)
    told = []
    for _ in range(24):
        clock.now_s += 5
        told.append(load.is_due())
    assert told == [*[False] * 5, True] * 4


def test_times_are_of_the_step() -> None:
    """Each begins anew, without what the last one has loaded."""
    clock = Clock()
    standing = Standing("node1", clock)
    standing.begin(2, "model")
    standing.load = Load(GB, clock)
    clock.now_s += 7
    assert standing.elapsed_s == 7
    standing.begin(3)
    assert (standing.elapsed_s, standing.step) == (0, "")
    assert standing.load is None


def test_what_a_view_shows_anyway_is_for_the_file_alone() -> None:
    """Without a view the console has it, too."""
    for is_watched in (False, True):
        console = io.StringIO()
        log = Log(Redactor(), console=console, is_watched=is_watched)
        log.write(Level.OUTPUT, "12 bytes", is_passing=True)
        log.info("kept")
        assert ("12 bytes" in console.getvalue(), "kept" in console.getvalue()) == (
            not is_watched,
            True,
        )
