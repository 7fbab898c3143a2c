"""Rounds of artifacts: which nonces, what is kept and written, how proofs are judged, all without a line elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocqueue.engine import Engine, EngineOptions, load_engine
from pocqueue.errors import InvalidRound
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.proof_file import ProofFile
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.validation import validate_proofs
from tests.support.callback_receiver import receiving
from tests.support.factories import make_spec
from tests.support.fake_engine import FakeEngine
from tests.support.rounds import assign
from workers.io import deliver
from workers.range_runner import RangeRunner

_GOLDEN = json.loads(
    (Path(__file__).parents[2] / "data" / "artifact_golden.json").read_text(encoding="utf-8")
)


def artifact_spec(**changes: Any) -> RoundSpec:
    """Make the specification of a round of artifacts."""
    fields = make_spec().model_dump()
    del fields["r_target"]
    return RoundSpec.build(**fields | {"scheme": "artifact"} | changes)


@pytest.mark.parametrize("golden", _GOLDEN["nonces"], ids=str)
def test_groups_of_a_node_share_its_nonces(golden: dict[str, Any]) -> None:
    expected = golden["first"]
    spec = artifact_spec(**{name: golden[name] for name in golden if name != "first"})
    assert list(spec.nonces(0, len(expected))) == expected
    assert [spec.index_of(nonce) for nonce in expected] == list(range(len(expected)))
    stride = golden["node_count"] * golden["n_groups"]
    for other in range(stride):
        if other != expected[0] % stride:
            with pytest.raises(InvalidRound):
                spec.index_of(other)


@pytest.mark.parametrize(("node_id", "node_count", "n_groups"), [(0, 1, 1), (6, 7, 1), (2, 9, 5)])
def test_no_nonce_is_above_31_bits(node_id: int, node_count: int, n_groups: int) -> None:
    """A round ends before it, whatever it was asked for."""
    share = {"node_id": node_id, "node_count": node_count, "n_groups": n_groups}
    spec = artifact_spec(**share)
    assert spec.max_nonces is not None
    last = spec.nonces(spec.max_nonces - 1, spec.max_nonces)[0]
    assert last <= 2**31 - 1 < last + node_count * n_groups
    assert artifact_spec(**share, max_nonces=100).max_nonces == 100
    assert artifact_spec(**share, max_nonces=2**40).max_nonces == spec.max_nonces


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k_dim", 0),
        ("k_dim", 65),
        ("group_id", 1),
        ("n_groups", 0),
        ("dist_threshold", -0.1),
        ("p_mismatch", 0),
        ("r_target", 1.4),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRound, match=field):
        artifact_spec(**{field: value})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The embedded model."""
    state_dir = tmp_path_factory.mktemp("state")
    return load_engine("torch", EngineOptions(model="embedded", device="cpu", state_dir=state_dir))


@pytest.fixture
def searched(backend: Backend, engine: Engine) -> RoundStatus:
    """A round of which 40 nonces are searched."""
    info = engine.info
    names = {"model": info.model, "model_fingerprint": info.fingerprint}
    spec = artifact_spec(**names, node_id=1, node_count=3, batch_size=8, seq_len=16)
    round_id = backend.store.create(spec)
    assign(backend.store, round_id, 40)
    runner = RangeRunner(engine, backend.store, "w0", pytest.fail)
    try:
        assert runner.run(round_id, 1) == "40 of 40 nonces"
    finally:
        runner.close()
    return backend.store.status(round_id)


def test_every_nonce_of_a_round_has_its_artifact(
    backend: Backend, engine: Engine, searched: RoundStatus, tmp_path: Path
) -> None:
    """Kept by a worker, written to a file, read and recomputed."""
    entries = list(backend.store.iter_proofs(searched))
    kept = Proofs.joined(entry.proofs for entry in entries)
    assert (searched.checked, searched.valid) == (40, 40)
    assert sorted(kept.nonces) == list(range(1, 121, 3))
    proof = searched.spec.proof
    assert isinstance(proof, Artifact)
    assert all(map(proof.is_possible, kept.values))

    path = tmp_path / "proofs.json"
    ProofFile.from_round(searched, engine.info, entries).write(path)
    honest = validate_proofs(ProofFile.read(path), engine)
    assert not honest.verdict.fraud_detected
    assert honest.verdict.n_invalid == 0


def test_artifacts_of_another_block_are_fraud(
    backend: Backend, engine: Engine, searched: RoundStatus
) -> None:
    """And so is a fifth of them changed."""
    kept = Proofs.joined(entry.proofs for entry in backend.store.iter_proofs(searched))
    proof = searched.spec.proof
    computed = kept.values
    shifted = Proofs(kept.nonces, [*kept.values[1:], kept.values[0]])
    verdict = proof.judge(shifted, computed)
    assert verdict.fraud_detected
    assert verdict.n_invalid == 40
    changed = [value if i % 5 else computed[0] for i, value in enumerate(computed, start=1)]
    assert proof.judge(Proofs(kept.nonces, changed), computed).n_invalid == 8
    unread = Proofs(kept.nonces, ["", "AA==", *kept.values[2:]])
    assert proof.judge(unread, computed).invalid == kept.nonces[:2]


async def test_a_callback_url_gets_artifacts_as_the_network_sends_them(backend: Backend) -> None:
    """Unsigned, whatever our own pages look like; any status below 400 will do."""
    async with receiving() as receiver:
        receiver.verdict = lambda _: 204
        spec = artifact_spec(node_id=1, node_count=3, batch_size=8, callback_url=receiver.url)
        round_id = backend.store.create(spec)
        assign(backend.store, round_id, 8)
        artifacts = [f"{nonce:032d}" for nonce in range(200)]
        runner = RangeRunner(FakeEngine(artifacts.__getitem__), backend.store, "w0", pytest.fail)
        try:
            runner.run(round_id, 1)
        finally:
            runner.close()
        [(_, token)] = backend.callbacks.claim_due(grace_s=60)
        said = await deliver(backend, round_id, token, "own", allow_private=True)
        assert said == "8 nonces delivered, 0 refused"
        [(_, body)] = receiver.received
    assert body == {
        "public_key": spec.public_key,
        "block_hash": spec.block_hash,
        "block_height": spec.block_height,
        "node_id": 1,
        "artifacts": [
            {"nonce": nonce, "vector_b64": artifacts[nonce]} for nonce in range(1, 25, 3)
        ],
        "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
    }
