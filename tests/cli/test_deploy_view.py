"""The live view of a run: what it says at each width, and that the log stands above it as it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pocqueue.cli.deploy_view import View, lines
from pocqueue.deploy.log import Log
from pocqueue.deploy.standing import Load, Standing
from pocqueue.deploy.words import Redactor
from tests.support.waiting import Clock


def standings(clock: Clock) -> list[Standing]:
    """Return two servers: one loads a model, the other is at its disk."""
    first, second = Standing("quick-newton", clock), Standing("slow-kelvin", clock)
    first.begin(2, "model")
    first.load = Load(64_100_000_000, clock)
    first.load.take("0 bytes")
    clock.now_s += 751
    first.load.take("39800000000 bytes")
    second.begin(1, "owner of mount point")
    return [first, second]


def shown(of: list[Standing], width: int) -> list[str]:
    """Return what a terminal of a width shows."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with screen.capture() as capture:
        screen.print(lines(of, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_one_server_has_a_line() -> None:
    """Phase, step, time, a bar, bytes, rate and time left: at 80 columns and at 200."""
    one = standings(Clock())[:1]
    [line] = shown(one, 80)
    assert line.startswith("phase 2 of ")
    assert line.endswith("39.8 of 64.1 GB  53.0 MB/s  7:38 left")
    assert "model  12:31  ━━" in line
    [line] = shown(one, 200)
    assert " GONKA AND MODELS  model  12:31  ━━━" in line
    assert len(line) < 200


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_server_has_one_line_at_any_width(width: int) -> None:
    """By its name; one that is over has none."""
    clock = Clock()
    two = standings(clock)
    found = shown(two, width)
    assert len(found) == 2
    assert all(len(line) <= width for line in found)
    for name, line in zip(("quick-newton", "slow-kelvin"), found, strict=True):
        assert name.startswith(line.split()[0].rstrip("…"))
    two[0].is_over = True
    assert [line.split()[0][:4] for line in shown(two, width)] == ["slow"]
    two[1].is_over = True
    assert shown(two, width) == [""]


def test_the_log_is_above_as_it_is() -> None:
    """In long lines, which the terminal breaks, with the levels' colours and nothing marked up."""
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, width=80, color_system="standard")
    view = View(screen)
    log = Log(Redactor(), console=view.above, is_watched=True)
    view.watch(log.standing)
    view.start()
    long = f"[bold]{'WORD ' * 40}end[/bold]"
    log.info(long)
    view.stop()
    [line] = [line for line in written.getvalue().splitlines() if "WORD" in line]
    assert long in line
    assert "\x1b[34m[INFO]" in line
