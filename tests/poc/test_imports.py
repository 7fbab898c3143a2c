"""What importing the package costs, and that every public name is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pocqueue.poc

LIGHT = """
import sys
import pocqueue.poc, pocqueue.poc.config, pocqueue.poc.data, pocqueue.poc.nonces
from pocqueue.poc import PoCConfig, ProofBatch, ValidatedBatch, nonces_of
ValidatedBatch("pk", "bh", 1, [1], [0.5], 0, [0.5], 1.0, 0.01)
print(*sorted({"torch", "scipy", "numpy", "aiohttp"} & set(sys.modules)))
"""


def test_importing_the_data_brings_no_heavy_package() -> None:
    """The scheduler and the command line start without torch, scipy, numpy and aiohttp."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_every_public_name_can_be_had() -> None:
    """Names that are imported late included; the list is sorted."""
    assert pocqueue.poc.__all__ == sorted(pocqueue.poc.__all__)
    for name in pocqueue.poc.__all__:
        assert getattr(pocqueue.poc, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pocqueue.poc.nothing
