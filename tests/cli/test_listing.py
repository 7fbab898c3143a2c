"""Tables in windows of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pocqueue.cli.output import columns, plain

_ID = "0b2b8d5e-9f37-4f6e-8a55-3f1f4f0f7d21"
_WALLET = "7xKXtg2CWzQ1uUeVnB8oRkRkP7hT6bNwq9Yc3vL5mZpA"
_HOST = "gpu-rig-00.rack-0.example.com"
_GPU = "8 NVIDIA H100 80GB HBM3, NVIDIA GeForce RTX 4090 (out)"


def lines(width: int, *, is_terminal: bool = True) -> list[str]:
    """Return two nodes as they are shown in a window of so many columns."""
    table = columns("node", "wallet", "host", "GPUs", right=("heard",), words=("host", "GPUs"))
    table.add_row(*plain(_ID, _WALLET, _HOST, _GPU, "0.4 s"))
    table.add_row(*plain(_ID[::-1], _WALLET[::-1], "[red]rig[/]", "", "12 min 07 s"), style="dim")
    written = io.StringIO()
    view = Console(file=written, width=width, force_terminal=is_terminal, color_system=None)
    view.print(table, soft_wrap=True)
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200, 300])
def test_what_is_copied_is_in_one_line(width: int) -> None:
    """Ids and wallets are whole, and no line of them is wider than the window."""
    shown = lines(width)
    for text in (_ID, _WALLET, _ID[::-1], _WALLET[::-1]):
        [line] = [line for line in shown if text in line]
        assert len(line) <= width
    # A table or lines.
    assert (width >= 160) == ("host" in shown[0])
    assert "[red]rig[/]" in "\n".join(shown)


def test_a_row_that_has_no_room_is_some_lines() -> None:
    """With its columns' names; an empty cell is left out."""
    assert lines(80) == [
        f"node {_ID}",
        f"  wallet {_WALLET}",
        f"  host {_HOST}",
        f"  GPUs {_GPU}   heard 0.4 s",
        f"node {_ID[::-1]}",
        f"  wallet {_WALLET[::-1]}   host [red]rig[/]",
        "  heard 12 min 07 s",
    ]


def test_long_words_are_left_to_the_terminal() -> None:
    """Sentences go on in the next line; an image with its digest can be copied whole."""
    table = columns("job", "what", "why", words=("what", "why"))
    image = f"lab/trainer@sha256:{'ab' * 32}"
    table.add_row(_ID, image, "No connected node has 8 healthy GPUs with 80,000 MiB each")
    written = io.StringIO()
    Console(file=written, width=50, force_terminal=True, color_system=None).print(
        table, soft_wrap=True
    )
    assert written.getvalue().splitlines() == [
        f"job {_ID}",
        f"  what {image}",
        "  why No connected node has 8 healthy GPUs with",
        "  80,000 MiB each",
    ]


def test_words_go_on_in_the_next_line() -> None:
    """Where a table has room for the rest: they alone, and no word of them is cut."""
    head, first, second, *_ = lines(160)
    assert head.split() == ["node", "wallet", "host", "GPUs", "heard"]
    assert _HOST in first
    at = slice(head.index("GPUs"), head.index("heard"))
    assert f"{first[at].strip()} {second[at].strip()}" == _GPU


def test_elsewhere_it_is_a_table() -> None:
    """However little room its reader says that there is."""
    head, first, *_ = lines(40, is_terminal=False)
    assert head.split()[:2] == ["node", "wallet"]
    assert _ID in first
    assert _WALLET in first
