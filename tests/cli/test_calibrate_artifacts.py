"""What calibrate says of artifacts."""

from __future__ import annotations

import numpy as np
import pytest

from pocqueue.cli.calibrate_artifacts import Report, _Pair
from pocqueue.measure.apart import Apart, threshold_for
from pocqueue.measure.samples import sample_draft
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.settings import DelegationSettings
from tests.support.factories import make_info


def report(largest: float) -> Report:
    """Return what is said of a thousand distances, spread evenly up to the largest."""
    proof = Artifact(p_mismatch=0.05)
    distances = [float(d) for d in np.linspace(0.0, largest, 1000)]
    found = Apart(proof=proof, distances=distances, num_nonces=1000, num_broken_a=0, num_broken_b=0)
    pair = _Pair("a and b", found, threshold_for(found), 0)
    draft = sample_draft("block", scheme="artifact")
    return Report("on the pool", draft, proof, make_info(), [pair])


def test_what_a_small_node_is_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it can be written into its environment; the threshold is not below what was found."""
    found = report(0.5)
    line = dict(found.rows())["spot checks"]
    words = line.removesuffix(" on a small node whose engine is like these").split()
    for word in words:
        monkeypatch.setenv(*word.split("="))
    settings = DelegationSettings.load()
    assert settings.p_mismatch == 0.05
    assert settings.dist_threshold is not None
    assert found.dist_threshold <= settings.dist_threshold < found.dist_threshold + 2e-4


def test_where_nothing_is_apart_nothing_is_to_be_set() -> None:
    """A threshold of 0 would call the first other GPU a fraud."""
    assert "spot checks" not in dict(report(0.0).rows())
