"""What importing the data of proofs costs."""

from __future__ import annotations

import subprocess
import sys

LIGHT = """
import sys
import pocqueue.poc.batch, pocqueue.poc.config, pocqueue.poc.nonces
from pocqueue.poc.data import ProofBatch, ValidatedBatch
ValidatedBatch("pk", "bh", 1, [1], [0.5], 0, [0.5], 1.0, 0.01)
heavy = {"torch", "scipy", "numpy", "aiohttp"}
print(*sorted((heavy | {"pydantic"}) & set(sys.modules)))
import pocqueue.poc.distance.scheme, pocqueue.poc.search
print(*sorted(heavy & set(sys.modules)))
"""


def test_importing_the_data_brings_no_heavy_package() -> None:
    """The scheduler and the command line start without torch, scipy, numpy and aiohttp."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == []
