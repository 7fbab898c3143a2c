"""The engine of a served model, against a real HTTP server: what it asks, and how patient it is."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from pocqueue.engine import COMMAND_PATIENCE_S, WORKER_PATIENCE_S, EngineOptions
from pocqueue.engine.vllm.ranks import BatchLimits
from pocqueue.engine.vllm.remote import (
    PATIENCE_S as BATCH_PATIENCE_S,
    VllmServer,
    VllmServerEngine,
    connect_vllm_server,
)
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound, PassTooLarge
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.batch import Batch
from tests.support.engine_client import round_of
from tests.support.factories import FINGERPRINT, OTHER_FINGERPRINT, make_info
from tests.support.ports import free_port

MAX_BATCH_SIZE = 16
PATIENCE_S = 5.0


class Clock:
    """Monotonic seconds of an engine: a pause takes no time, and is where things change.

    Attributes:
        pauses: the length of each.
        on_pause: called in each with its number, from 1 on.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.on_pause: Callable[[int], None] = lambda _: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        assert len(self.pauses) < 10_000
        self.on_pause(len(self.pauses))


class QuietServer(ThreadingHTTPServer):
    """Waits for its threads when it closes, and prints nothing of clients that went away."""

    daemon_threads = False

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class Server:
    """A vLLM server with the plugin, on loopback.

    Attributes:
        answers: status and body of the answers still to give, in order; then the good ones follow.
        model: answer of the route of the model.
        distance: of a nonce.
        value: of a nonce, in another scheme.
        fingerprint: of the model that it serves.
        requests: (method, path, token, body) of each.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.model: dict[str, Any] = make_info().to_dict() | {"max_batch_size": MAX_BATCH_SIZE}
        self.distance: Callable[[int], float | None] = lambda nonce: nonce / 100
        self.value: Callable[[int], Any] = str
        self.fingerprint = FINGERPRINT
        self.dtype = "float32"
        self.requests: list[tuple[str, str, str | None, Any]] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._http: QuietServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve from now on."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._handle()

            def do_POST(self) -> None:
                self._handle()

            def _handle(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                token = self.headers.get("Authorization")
                outer.requests.append((self.command, self.path, token, body))
                status, answer = outer.answer(self.path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            @override
            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._http = QuietServer(("127.0.0.1", self.port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.005,))
        self._thread.start()

    def stop(self) -> None:
        """Be away."""
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
            self._http = None

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body for a request."""
        if self.answers:
            return self.answers.pop(0)
        if path == "/api/v1/pow/model":
            return 200, self.model
        of = {"distances": self.distance, "values": self.value}
        name = path.removeprefix("/api/v1/pow/")
        return 200, {
            name: [of[name](nonce) for nonce in body["nonces"]],
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
        }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def engine(server: Server, clock: Clock) -> Iterator[VllmServerEngine]:
    """An engine that knows its server already."""
    asked = VllmServer(server.url, clock=clock.monotonic, sleep=clock.sleep)
    limits = BatchLimits(MAX_BATCH_SIZE)
    engine = VllmServerEngine(asked, make_info(engine="vllm-server"), limits, PATIENCE_S)
    yield engine
    engine.close()


@contextmanager
def connected(
    server: Server,
    progress: list[str] | None = None,
    clock: Clock | None = None,
    **changes: Any,
) -> Iterator[VllmServerEngine]:
    """Connect as a worker does, with pauses that take no time."""
    clock = clock or Clock()
    fields: dict[str, Any] = {
        "model": "any",
        "device": "cpu",
        "state_dir": Path("unused"),
        "server_url": server.url,
        "server_patience_s": 900.0,
    }
    options = EngineOptions(**fields | changes)
    asked = VllmServer(server.url, options.server_token, clock=clock.monotonic, sleep=clock.sleep)
    engine = connect_vllm_server(options, ([] if progress is None else progress).append, asked)
    try:
        yield engine
    finally:
        engine.close()


def test_a_worker_takes_what_is_served(server: Server) -> None:
    """The description is the server's; it is told in one line."""
    progress: list[str] = []
    with connected(server, progress) as engine:
        assert engine.info == make_info(engine="vllm-server", max_pass_nonces=MAX_BATCH_SIZE)
        assert progress == [f"Using twin of the vLLM server at {server.url} in float32"]
        assert server.requests == [("GET", "/api/v1/pow/model", None, None)]
        assert engine.values(Batch.of(round_of(), [7])) == [0.07]


def test_the_token_goes_with_every_request(server: Server) -> None:
    """As a bearer token; a slash after the URL does no harm."""
    with connected(server, server_url=f"{server.url}/", server_token="secret") as engine:
        engine.values(Batch.of(round_of(), [1]))
        assert [(path, token) for _, path, token, _ in server.requests] == [
            ("/api/v1/pow/model", "Bearer secret"),
            ("/api/v1/pow/distances", "Bearer secret"),
        ]


def test_a_batch_is_one_request(server: Server, engine: VllmServerEngine) -> None:
    """Distances come back in the order of the nonces; null is NaN, whole numbers are numbers."""
    server.distance = lambda nonce: {1: None, 2: 1, 2**62: 0.25}[nonce]
    distances = engine.values(Batch.of(round_of(), [2**62, 1, 2]))
    assert distances[0] == 0.25
    assert math.isnan(distances[1])
    assert distances[2] == 1.0
    assert all(type(distance) is float for distance in distances)
    [(method, path, _, body)] = server.requests
    assert (method, path) == ("POST", "/api/v1/pow/distances")
    assert body == {
        "block_hash": "block-1",
        "public_key": "key-1",
        "nonces": [2**62, 1, 2],
        "batch_size": 4,
        "seq_len": 8,
        "upcoming": None,
    }


def test_the_server_is_told_of_the_next_batch(server: Server, engine: VllmServerEngine) -> None:
    """With the fields of a batch, so that it can make inputs meanwhile."""
    config = round_of()
    engine.values(Batch.of(config, [1]), Batch("block-2", "key-2", (5, 6), 4, 8))
    [(_, _, _, body)] = server.requests
    assert body is not None
    assert body["upcoming"] == {
        "block_hash": "block-2",
        "public_key": "key-2",
        "nonces": [5, 6],
        "batch_size": 4,
        "seq_len": 8,
    }


def artifacts_of(*nonces: int, block: str = "block-1") -> Batch:
    proof = Artifact(k_dim=8)
    return Batch(block, "key-1", nonces, 4, 8, proof.name, proof.options)


def test_another_scheme_has_a_route_of_its_own(server: Server, engine: VllmServerEngine) -> None:
    """With its options in the body; a nonce without a value has none."""
    engine.values(artifacts_of(1, 2), artifacts_of(3, block="block-2"))
    [(_, path, _, body)] = server.requests
    options = {"scheme": "artifact", "k_dim": 8, "stronger_rng": False}
    shape = {"public_key": "key-1", "batch_size": 4, "seq_len": 8}
    assert path == "/api/v1/pow/values"
    assert body == {
        "block_hash": "block-1",
        "nonces": [1, 2],
        **(shape | options),
        "upcoming": {"block_hash": "block-2", "nonces": [3], **(shape | options)},
    }
    server.value = lambda nonce: "AAAA" if nonce != 2 else None
    assert engine.values(artifacts_of(1, 2)) == ["AAAA", None]


@pytest.mark.parametrize("values", [[None], ["AAAA", 1.5], ["AAAA", True], None, "AAAA", {}])
def test_values_of_another_kind_are_none(
    server: Server, engine: VllmServerEngine, values: Any
) -> None:
    server.answers = [(200, {"values": values, "fingerprint": FINGERPRINT, "dtype": "float32"})]
    with pytest.raises(EngineUnavailable, match="with one artifact for each of 2 nonces"):
        engine.values(artifacts_of(1, 2))


def test_an_older_server_computes_distances_alone(server: Server, engine: VllmServerEngine) -> None:
    """One sentence; it is well otherwise, and not asked again."""
    server.answers = [(404, {"detail": "Not Found"})]
    with pytest.raises(
        EngineError, match="computes distances alone: its pocqueue is older"
    ) as caught:
        engine.values(artifacts_of(1, 2))
    assert not isinstance(caught.value, EngineUnavailable)
    assert engine.values(Batch.of(round_of(), [2])) == [0.02]


def test_a_batch_of_another_scheme_is_not_expected(
    server: Server, engine: VllmServerEngine
) -> None:
    """Each route knows its own."""
    engine.values(Batch.of(round_of(), [1]), artifacts_of(1))
    engine.values(artifacts_of(1), Batch.of(round_of(), [1]))
    assert [body["upcoming"] for _, _, _, body in server.requests] == [None, None]


def test_warming_up_is_a_batch(server: Server, engine: VllmServerEngine) -> None:
    """Of the round's shape."""
    engine.warm_up(8, 32)
    [(_, _, _, body)] = server.requests
    assert (body["batch_size"], body["seq_len"], len(body["nonces"])) == (8, 32, 1)


@pytest.mark.parametrize(
    ("changes", "nonces", "field"),
    [
        ({"batch_size": MAX_BATCH_SIZE + 1}, [1], "batch_size"),
        ({"seq_len": 1025}, [1], "seq_len"),
        ({}, [1, 2, 3, 4, 5], "nonces"),
    ],
)
def test_what_the_server_cannot_run_is_not_sent(
    server: Server,
    engine: VllmServerEngine,
    changes: dict[str, Any],
    nonces: list[int],
    field: str,
) -> None:
    """The error names the field; neither are no nonces sent."""
    with pytest.raises(InvalidRound) as caught:
        engine.values(Batch.of(round_of(**changes), nonces))
    assert caught.value.field == field
    assert engine.values(Batch.of(round_of(), [])) == []
    assert server.requests == []


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_cannot_just_now_is_asked_again(
    server: Server, engine: VllmServerEngine, clock: Clock, status: int
) -> None:
    """With growing pauses."""
    server.answers = [(status, {"detail": "not now"})] * 3
    assert engine.values(Batch.of(round_of(), [1, 2])) == [0.01, 0.02]
    assert len(server.requests) == 4
    assert len({repr(request) for request in server.requests}) == 1
    assert clock.pauses == sorted(clock.pauses)
    assert len(clock.pauses) == 3


def test_a_server_that_restarts_is_waited_for(
    server: Server, engine: VllmServerEngine, clock: Clock
) -> None:
    """The batch is sent again, and nobody notices."""
    assert engine.values(Batch.of(round_of(), [1])) == [0.01]
    server.stop()
    clock.on_pause = lambda number: server.start() if number == 3 else None
    assert engine.values(Batch.of(round_of(), [2])) == [0.02]
    assert len(server.requests) == 2


def test_patience_ends(server: Server, engine: VllmServerEngine, clock: Clock) -> None:
    """A server that is away for good is unavailable; the sentence says where to look."""
    server.stop()
    begun = clock.now
    with pytest.raises(EngineUnavailable, match=r"does not answer \(ConnectError\)") as caught:
        engine.values(Batch.of(round_of(), [1]))
    assert server.url in str(caught.value)
    assert "Check POCQUEUE_VLLM_URL and the server's log." in str(caught.value)
    assert PATIENCE_S / 2 < clock.now - begun <= PATIENCE_S


def test_patience_ends_with_the_servers_own_reason(
    server: Server, engine: VllmServerEngine
) -> None:
    """Where it answers, but cannot use its engine."""
    server.answers = [(503, {"detail": "Engine not available: vLLM's engine is dead."})] * 100
    with pytest.raises(EngineUnavailable, match="says 503: Engine not available: vLLM's engine is"):
        engine.values(Batch.of(round_of(), [1]))


def test_each_batch_has_patience_of_its_own(
    server: Server, engine: VllmServerEngine, clock: Clock
) -> None:
    """What the one before has used up does not count."""
    server.stop()
    with pytest.raises(EngineUnavailable):
        engine.values(Batch.of(round_of(), [1]))
    used = len(clock.pauses)
    clock.on_pause = lambda number: server.start() if number == used + 2 else None
    assert engine.values(Batch.of(round_of(), [1])) == [0.01]


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, {"error": "Unauthorized"}, r"refuses the token\. Set POCQUEUE_VLLM_TOKEN"),
        (404, {"detail": "Not Found"}, r"no route /api/v1/pow/distances\. .*VLLM_PLUGINS=pocqueue"),
        (422, {"detail": "seq_len is 9; allowed: 1 to 8."}, r"status 422: seq_len is 9; allowed:"),
        (400, ["no", "detail"], r'status 400: \["no", "detail"\]'),
        (307, {}, "status 307"),
    ],
)
def test_a_refusal_is_final(
    server: Server,
    engine: VllmServerEngine,
    clock: Clock,
    status: int,
    body: Any,
    sentence: str,
) -> None:
    """One sentence that says what to do; the server has changed, and asking again would not help."""
    server.answers = [(status, body)]
    with pytest.raises(EngineUnavailable, match=sentence) as caught:
        engine.values(Batch.of(round_of(), [1]))
    assert f"The vLLM server at {server.url}" in str(caught.value)
    assert clock.pauses == []
    assert engine.values(Batch.of(round_of(), [1])) == [0.01]


@pytest.mark.parametrize(
    ("field", "value"), [("fingerprint", OTHER_FINGERPRINT), ("dtype", "bfloat16")]
)
def test_another_model_is_noticed_at_once(
    server: Server, engine: VllmServerEngine, field: str, value: str
) -> None:
    """A server may be restarted with another one between two batches; its distances do not count."""
    engine.values(Batch.of(round_of(), [1]))
    setattr(server, field, value)
    with pytest.raises(EngineUnavailable, match="serves another model by now") as caught:
        engine.values(Batch.of(round_of(), [1]))
    assert value[:12] in str(caught.value)
    assert "Start this worker again" in str(caught.value)


@pytest.mark.parametrize(
    "distances", [None, "0.1", [], [0.1], [0.1, 0.2, 0.3], [0.1, "0.2"], [0.1, [0.2]], [0.1, True]]
)
def test_other_than_one_distance_a_nonce_is_no_answer(
    server: Server, engine: VllmServerEngine, distances: Any
) -> None:
    """Too few, too many, none, or something else."""
    body = {"distances": distances, "fingerprint": FINGERPRINT, "dtype": "float32"}
    server.answers = [(200, body)]
    with pytest.raises(EngineUnavailable, match="one distance for each of 2 nonces"):
        engine.values(Batch.of(round_of(), [1, 2]))


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"", ["a list"]])
def test_something_else_than_the_plugin_is_noticed(
    server: Server, engine: VllmServerEngine, body: Any
) -> None:
    """A proxy's page, for one; also where a worker starts."""
    server.answers = [(200, body)] * 2
    with pytest.raises(EngineUnavailable, match="is not pocqueue's plugin"):
        engine.values(Batch.of(round_of(), [1]))
    with pytest.raises(EngineError, match="is not pocqueue's plugin"), connected(server):
        pass


def test_a_worker_waits_for_a_server_that_starts(server: Server, clock: Clock) -> None:
    """First it is not there, then it loads its model, then it hashes it; the worker tells now and then."""
    server.stop()
    server.answers = [(503, {"detail": "the server is still starting."})] * 12

    def get_on(number: int) -> None:
        if number == 10:
            server.start()

    clock.on_pause = get_on
    progress: list[str] = []
    with connected(server, progress, clock) as engine:
        assert engine.info.model == "twin"
    waited = sum(clock.pauses)
    assert len(clock.pauses) == 22
    assert progress[0] == (
        f"Waiting for the vLLM server: {server.url} does not answer (ConnectError)"
    )
    assert "says 503: the server is still starting." in progress[-2]
    assert progress[-1].startswith("Using twin of the vLLM server")
    assert 2 <= len(progress) - 1 <= waited / 10 + 1


def test_a_command_does_not_wait_for_long(server: Server, clock: Clock) -> None:
    """Somebody is looking on; a worker waits for as long as a model takes to load."""
    server.stop()
    begun = clock.now
    with (
        pytest.raises(EngineUnavailable, match="does not answer"),
        connected(server, clock=clock, server_patience_s=30.0),
    ):
        pass
    assert 15 < clock.now - begun <= 30
    assert COMMAND_PATIENCE_S < BATCH_PATIENCE_S < WORKER_PATIENCE_S


def test_a_server_that_never_will_is_not_waited_for(server: Server, clock: Clock) -> None:
    """It says so."""
    server.answers = [(503, {"detail": "PoC not enabled: --enable-lora."})]
    with (
        pytest.raises(EngineError, match="PoC not enabled: --enable-lora"),
        connected(server, clock=clock),
    ):
        pass
    assert not clock.pauses


def test_a_batch_without_room_on_the_server_is_told_apart(
    server: Server, engine: VllmServerEngine
) -> None:
    """So that a worker learns how much its server holds; it is not asked again."""
    server.answers = [(507, {"detail": "A batch of 16 x 8 tokens does not fit."})]
    with pytest.raises(PassTooLarge, match="refuses with status 507: A batch of 16 x 8"):
        engine.values(Batch.of(round_of(), [1]))
    assert engine.values(Batch.of(round_of(), [2])) == [0.02]


def test_a_batch_that_failed_is_the_batchs_fault(server: Server, engine: VllmServerEngine) -> None:
    """The server is well, so the worker is too."""
    server.answers = [(500, {"detail": "It does not fit."})]
    with pytest.raises(EngineError, match="It does not fit") as caught:
        engine.values(Batch.of(round_of(), [1]))
    assert not isinstance(caught.value, EngineUnavailable)


#: Later versions added these, with a default.
_OPTIONAL = {
    "tensor_parallel",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "max_pass_nonces",
    "max_pass_tokens",
}


@pytest.mark.parametrize(
    "field", [*sorted(make_info().to_dict().keys() - _OPTIONAL), "max_batch_size"]
)
@pytest.mark.parametrize("value", [None, "left out"])
def test_a_description_without_a_field_is_refused(
    server: Server, field: str, value: str | None
) -> None:
    """Left out or null: the plugin is of another version."""
    del server.model[field]
    if value is None:
        server.model[field] = None
    with (
        pytest.raises(EngineError, match="does not describe its model") as caught,
        connected(server),
    ):
        pass
    assert "Both sides need the same version of pocqueue." in str(caught.value)
    assert not isinstance(caught.value, EngineUnavailable)
    assert value is None or field in str(caught.value)


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "refuses the token"), (404, "no route /api/v1/pow/model")]
)
def test_a_server_that_refuses_a_worker(server: Server, status: int, sentence: str) -> None:
    """At once, in one sentence."""
    server.answers = [(status, {"detail": "no"})]
    with pytest.raises(EngineError, match=sentence), connected(server):
        pass
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [(401, {}), (200, {})])
def test_a_worker_that_cannot_start_leaves_no_connection(
    server: Server, answer: tuple[int, Any]
) -> None:
    """Refused, or with a description that is none."""
    asked = VllmServer(server.url)
    server.answers = [answer]
    options = EngineOptions(model="any", device="cpu", state_dir=Path("unused"))
    with pytest.raises(EngineError):
        connect_vllm_server(options, lambda _line: None, asked)
    assert asked.client.is_closed


def test_a_batch_that_hangs_is_given_up(server: Server, clock: Clock) -> None:
    """A server that takes a request and never answers is as good as away."""
    never = threading.Event()
    server.distance = lambda _: float(never.wait(20))
    asked = VllmServer(server.url, timeout_s=0.02, clock=clock.monotonic, sleep=clock.sleep)
    engine = VllmServerEngine(asked, make_info(), BatchLimits(MAX_BATCH_SIZE), patience_s=0.2)
    with pytest.raises(EngineUnavailable, match=r"does not answer \(ReadTimeout\)"):
        engine.values(Batch.of(round_of(), [1]))
    never.set()
    engine.close()


def test_closing_twice_is_fine(server: Server) -> None:
    """The server goes on."""
    with connected(server) as engine:
        engine.close()
    with connected(server) as engine:
        assert engine.values(Batch.of(round_of(), [1])) == [0.01]
