"""A second proof scheme goes everywhere that distances go, without a line of its own anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocqueue.cli.report import print_round
from pocqueue.delegation.client import DelegationClient
from pocqueue.engine import EngineOptions, load_engine
from pocqueue.errors import DelegationError, InvalidRound, ProofFileError, SignatureError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.page_check import Fraud
from pocqueue.node.round import NodeRound
from pocqueue.node.signing import sign_body, verify_body
from pocqueue.node.spot_check import SpotCheck
from pocqueue.poc.batch import Batch
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import scheme_class
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.proof_file import ProofFile, digest
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundSpec
from pocqueue.rounds.validation import validate_proofs
from pocqueue.settings import DelegationSettings
from tests.support.callback_receiver import receiving
from tests.support.delegation_server import TOKEN, Client, live_gpus, serving
from tests.support.factories import make_info, make_spec
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.node import big_node, make_request, make_round
from tests.support.rounds import assign, check_books
from tests.support.vectors import Vectors, vector_of
from workers.io import deliver
from workers.range_runner import RangeRunner

PARAMETERS: dict[str, Any] = {"scheme": "vector", "size": 3, "tolerance": 0.01}


def vector_spec(**changes: Any) -> RoundSpec:
    """Make the specification of a round of vectors."""
    fields = make_spec().model_dump()
    del fields["r_target"]
    return RoundSpec.build(**fields | PARAMETERS | changes)


def vector_round() -> NodeRound:
    """Make the same round as the chain asks a small node for it."""
    return NodeRound(**make_round().model_dump() | PARAMETERS)


def searched(backend: Backend, round_id: str, num_nonces: int = 40) -> RoundStatus:
    """Let a worker search nonces of a round; every fifth of them gives no vector."""
    assign(backend.store, round_id, num_nonces)
    engine = FakeEngine(lambda n: vector_of(n) if n % 5 else [math.nan] * 3)
    runner = RangeRunner(engine, backend.store, "w0", pytest.fail)
    try:
        assert runner.run(round_id, 1) == f"{num_nonces} of {num_nonces} nonces"
    finally:
        runner.close()
    return backend.store.status(round_id)


FOUND = [nonce for nonce in range(40) if nonce % 5]


def test_its_parameters_stand_flat_beside_its_name() -> None:
    """In a specification and whatever it is written to; those of another scheme are refused."""
    spec = vector_spec(size=5)
    assert spec.proof == Vectors(size=5)
    assert (spec.scheme, spec.options) == ("vector", (("k_dim", 5),))
    written = json.loads(spec.model_dump_json())
    assert (written["scheme"], written["size"], written["tolerance"]) == ("vector", 5, 0.01)
    assert RoundSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(InvalidRound, match=r"^r_target is 1"):
        vector_spec(r_target=1.0)
    with pytest.raises(InvalidRound, match=r"^size is 0"):
        vector_spec(size=0)
    assert scheme_class("vector") is Vectors


def test_a_worker_keeps_every_vector_that_it_can_compute(backend: Backend) -> None:
    """Counted, and in the store as they were computed; those with NaN are counted apart."""
    status = searched(backend, backend.store.create(vector_spec()))
    assert (status.checked, status.valid, status.nonfinite) == (40, 32, 8)
    check_books(backend.store, status.round_id)
    kept = Proofs.joined(entry.proofs for entry in backend.store.iter_proofs(status))
    assert kept == Proofs(FOUND, [vector_of(nonce) for nonce in FOUND])


@pytest.fixture
async def client(backend: Backend, settings_for: SettingsFactory) -> AsyncIterator[Client]:
    """A client of a delegation with a live GPU."""
    live_gpus(backend)
    async with serving(settings_for()) as client:
        yield client


async def test_a_session_is_started_and_read_over_http(client: Client, backend: Backend) -> None:
    """The body names the scheme; pages have its field."""
    session_id = await client.start(**PARAMETERS)
    assert searched(backend, session_id).spec.proof == Vectors()
    batches = (await client.batches(session_id, cursor=""))["batches"]
    assert [nonce for batch in batches for nonce in batch["nonces"]] == FOUND
    vectors = [vector for batch in batches for vector in batch["vectors"]]
    assert vectors == [vector_of(nonce) for nonce in FOUND]
    assert {batch["scheme"] for batch in batches} == {"vector"}


async def test_a_small_node_reads_a_session(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """Asked for and read by the same client as distances; what is no vector is refused."""
    live_gpus(backend)
    with big_node(settings_for()) as url:
        async with DelegationClient(url, TOKEN, scheme="vector") as node:
            started = await node.start(vector_round().start_body())
            searched(backend, started.session_id)
            page = await node.batches(started.session_id, "", 0.0)
            assert Proofs.joined(batch.proofs for batch in page.batches).nonces == FOUND
        async with DelegationClient(url, TOKEN) as other:
            with pytest.raises(DelegationError, match=r"batches\.0\.dist"):
                await other.batches(started.session_id, "", 0.0)


async def test_a_callback_url_gets_the_batches(backend: Backend) -> None:
    """In the words of the scheme."""
    async with receiving() as receiver:
        round_id = backend.store.create(vector_spec(callback_url=receiver.url))
        status = searched(backend, round_id)
        [(_, token)] = backend.callbacks.claim_due(grace_s=60)
        await deliver(backend, round_id, token, "own", allow_private=True)
        [body] = receiver.accepted
        assert body == status.spec.body(Proofs(FOUND, [vector_of(nonce) for nonce in FOUND]))


def test_batches_and_verdicts_are_signed() -> None:
    """Values, parameters and the scheme's name: none can be changed unnoticed."""
    node_round = vector_round()
    proof, key = node_round.proof, SigningKey.generate()
    proofs = Proofs([1, 2], [vector_of(1), vector_of(2)])
    batch = sign_body(proof.signed_body(node_round, proofs), key)
    assert verify_body(json.loads(json.dumps(batch))) == key.public_hex
    verdict = proof.judge(proofs, [vector_of(1), vector_of(3)])
    judged = sign_body(proof.verdict_body(node_round, verdict), key)
    assert (judged["n_invalid"], judged["fraud_detected"]) == (1, True)
    assert verify_body(json.loads(json.dumps(judged))) == key.public_hex
    for body, change in (
        (batch, {"vectors": [vector_of(2), vector_of(2)]}),
        (batch, {"scheme": "distance", "dist": [0.5, 0.5]}),
        (judged, {"received_vectors": [vector_of(3), vector_of(3)]}),
        (judged, {"tolerance": 0.5}),
    ):
        with pytest.raises(SignatureError, match="signature"):
            verify_body(body | change)
    with pytest.raises(SignatureError, match=r"^scheme is 'chance'"):
        verify_body(batch | {"scheme": "chance"})
    with pytest.raises(SignatureError, match=r"^vectors is 0.5"):
        sign_body(proof.signed_body(node_round, proofs) | {"vectors": [0.5, 0.5]}, key)


async def test_a_sample_is_recomputed(settings_for: SettingsFactory, tmp_path: Path) -> None:
    """A big node that makes vectors up is found out; an honest one is not."""
    for engine_says, fraud in ((vector_of, False), (lambda n: vector_of(n + 1), True)):
        with Outbox(tmp_path / f"{fraud}.sqlite3") as outbox:
            outbox.open_session("s", "delegation", "{}")
            host = EngineHost(settings_for(), lambda *_, says=engine_says: FakeEngine(says))
            host.start()
            check = SpotCheck(
                host,
                make_request(vector_round()),
                "s",
                outbox,
                NodeMetrics(),
                delegation=DelegationSettings(),
            )
            with pytest.raises(Fraud) if fraud else nullcontext():
                await check.check([Proofs.of((nonce, vector_of(nonce)) for nonce in range(500))])
            await host.close()


def test_proofs_are_written_read_and_recomputed(backend: Backend, tmp_path: Path) -> None:
    """A file has the scheme's name and field, and is judged by its rules."""
    status = searched(backend, backend.store.create(vector_spec()))
    entries = list(backend.store.iter_proofs(status))
    path = tmp_path / "proofs.json"
    ProofFile.from_round(status, make_info(), entries).write(path)
    content = json.loads(path.read_text())
    assert (content["round"]["scheme"], content["proofs"]["scheme"]) == ("vector", "vector")
    assert content["result"]["expected_valid_rate"] == 1.0
    file = ProofFile.read(path)
    assert file.proofs == Proofs(FOUND, [vector_of(nonce) for nonce in FOUND])
    assert file.spec.proof == Vectors()

    honest = validate_proofs(file, FakeEngine(lambda n: [x + 0.005 for x in vector_of(n)]))
    assert not honest.verdict.fraud_detected
    assert "a claimed and a computed vector 0.005" in honest.sentence()
    fraud = validate_proofs(file, FakeEngine(lambda n: vector_of(n + (n < 5))))
    assert fraud.verdict.invalid == [1, 2, 3, 4]
    assert fraud.to_dict() | {"verdict": "fraud", "size": 3, "scheme": "vector"} == fraud.to_dict()

    content["proofs"]["vectors"][2] = [1.0]
    content["sha256"] = digest(content)
    with pytest.raises(ProofFileError, match=r"the vector of nonce 3 is \[1.0\]; allowed: as many"):
        ProofFile.parse(json.dumps(content).encode(), "a file")


def test_people_are_shown_its_facts(backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    """In the tables of the command line."""
    status = searched(backend, backend.store.create(vector_spec()))
    print_round(
        status, list(backend.store.iter_proofs(status)), backend.callbacks.progress(status.round_id)
    )
    shown = capsys.readouterr().out
    assert ["vector", "size", "3"] in [line.split() for line in shown.splitlines()]
    assert "vector 1.000000 1.125000 1.250000" in shown
    assert "r_target" not in shown


def test_a_model_computes_the_vectors(backend: Backend, tmp_path: Path) -> None:
    """With the torch engine: the same as its worker keeps, whatever stands beside a nonce."""
    options = EngineOptions(model="embedded", device="cpu", state_dir=tmp_path, dtype="float32")
    engine = load_engine("torch", options)
    info = engine.info
    spec = vector_spec(model=info.model, model_fingerprint=info.fingerprint, batch_size=4, size=2)
    round_id = backend.store.create(spec)
    assign(backend.store, round_id, 10)
    runner = RangeRunner(engine, backend.store, "w0", pytest.fail)
    try:
        assert runner.run(round_id, 1) == "10 of 10 nonces"
        status = backend.store.status(round_id)
        kept = Proofs.joined(entry.proofs for entry in backend.store.iter_proofs(status))
        assert kept.nonces == list(range(10))
        assert len({tuple(vector) for vector in kept.values}) == 10
        assert all(len(vector) == 2 for vector in kept.values)
        assert engine.values(Batch.of(spec, [7])) == [kept.values[7]]
        distance = Batch("block-1", "key-1", (7,), 4, 8)
        assert 0 <= engine.values(distance, Batch.of(spec, [8]))[0] <= 2
        with pytest.raises(InvalidRound, match=r"^scheme is 'chance'"):
            engine.values(replace(distance, scheme="chance"))
    finally:
        runner.close()
        engine.close()


@pytest.mark.parametrize("value", [2.5, -0.5, math.nan, math.inf])
def test_a_distance_that_cannot_be_is_refused_whatever_the_target(value: float) -> None:
    """Also where the target is above every distance, as older clients have it."""
    proof = Distance(r_target=10.0)
    assert proof.refusal(1.4) is None
    assert proof.refusal(value) == f"claims distance {value}, which is not valid"
