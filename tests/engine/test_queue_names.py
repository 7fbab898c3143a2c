"""Names of GPU queues."""

from __future__ import annotations

import pytest

from pocqueue.engine.devices import parse_queue


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("gpu0", (None, 0)),
        ("gpu12", (None, 12)),
        ("rack-1_a.gpu3", ("rack-1_a", 3)),
        ("node7.dc.example.org.gpu0", ("node7.dc.example.org", 0)),
        ("10.0.0.7.gpu15", ("10.0.0.7", 15)),
        ("gpu1.gpu0", ("gpu1", 0)),
    ],
)
def test_gpu_queues_give_host_and_index(name: str, parsed: tuple[str | None, int]) -> None:
    """A host may have dots; the index is what follows the last ``gpu``."""
    assert parse_queue(name) == parsed


@pytest.mark.parametrize(
    "name",
    [
        *("", "io", "gpu", "gpu-1", "gpu01", "gpu1000", "GPU0", "gpu0 ", "gpu0\n", "agpu0"),
        *(
            "gpu0.io",
            ".gpu0",
            "a..gpu0",
            "a b.gpu0",
            "höst.gpu0",
            "gpu\N{ARABIC-INDIC DIGIT THREE}",
        ),
    ],
)
def test_other_queues_are_no_gpu_queues(name: str) -> None:
    """Nothing is guessed: one device has one name."""
    assert parse_queue(name) is None
