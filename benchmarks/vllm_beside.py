"""What a proof round and the completions that were running when it began cost each other, on a real vLLM server.

    python -m benchmarks.vllm_beside

The embedded model on the CPU, batches of 32 x 256; eight streams run when the round begins, which waits for none.
Two servers take turns: one without a share for requests (`POCQUEUE_VLLM_DECODE_SHARE=0`), one with the usual one.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.stats import Figure, Sample
from pocqueue.settings import Settings
from tests.support.vllm_parts import VllmServer, served_model
from tests.support.waiting import wait_until

NUM_STREAMS = 8
NUM_TURNS = 4
TURN_S = 5.0
#: Enough for the whole measurement on a fast machine: some seconds of it decode at full speed.
MAX_TOKENS, MAX_LEN = 4000, 4096
ROUND = {"block_hash": "beside", "block_height": 1, "public_key": "bench", "r_target": 1.4}


@dataclass
class _Rates:
    """What a server gave, a value a turn: tokens/s of all streams together, nonces/s."""

    tokens_alone: list[float] = field(default_factory=list)
    nonces_alone: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    nonces: list[float] = field(default_factory=list)


class _Streams:
    """Completions that run at once."""

    def __init__(self, server: VllmServer) -> None:
        self._stop = threading.Event()
        begun = [threading.Event() for _ in range(NUM_STREAMS)]
        self._threads = [
            threading.Thread(target=self._read, args=(server, i, begun[i]), daemon=True)
            for i in range(NUM_STREAMS)
        ]
        for thread in self._threads:
            thread.start()
        for event in begun:
            event.wait(120)

    @property
    def all_run(self) -> bool:
        """Say whether none has ended."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End them; the server cancels what nobody reads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, server: VllmServer, number: int, begun: threading.Event) -> None:
        for _ in server.stream(f"w{number + 5}", MAX_TOKENS, begun):
            if self._stop.is_set():
                return


def vllm_beside() -> list[Figure]:
    """Measure both servers in turns; return the figures."""
    share: float = Settings.model_fields["vllm_decode_share"].default
    none, some = _Rates(), _Rates()
    with _server(0.0) as without, _server(share) as sharing:
        sides = [(without, none), (sharing, some)]
        for turn in range(NUM_TURNS):
            for server, rates in sides if turn % 2 == 0 else reversed(sides):
                _turn(server, rates)
    tokens, nonces = Sample(some.tokens, "tokens/s"), Sample(some.nonces, "nonces/s")
    more = _median_ratio(some.tokens, none.tokens)
    left = _median_ratio(some.nonces, none.nonces)
    name = f"{NUM_STREAMS} completions and a round, a share of {share:.0%} for the completions"
    return [
        Figure(
            f"{name}: decoding",
            tokens,
            Sample(none.tokens, "tokens/s"),
            f"without a share; no round: {Sample(none.tokens_alone + some.tokens_alone, 'tokens/s')}",
            more,
            "ratio at least 2",
            more >= 2,
        ),
        Figure(
            f"{name}: proof",
            nonces,
            Sample(none.nonces, "nonces/s"),
            "without a share; no completions: "
            f"{Sample(none.nonces_alone + some.nonces_alone, 'nonces/s')}",
            left,
            f"ratio at least {0.9 * (1 - share):.2g}",
            left >= 0.9 * (1 - share),
        ),
    ]


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return Sample([a / b for a, b in zip(ours, theirs, strict=True)], "").median


@contextmanager
def _server(share: float) -> Iterator[VllmServer]:
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as name:
        folder = Path(name)
        env = {
            "POCQUEUE_STATE_DIR": name,
            "POCQUEUE_VLLM_DRAIN_SECONDS": "0",
            "POCQUEUE_VLLM_DECODE_SHARE": str(share),
        }
        # So small a model decodes faster than each token can be sent: the sending, not the decoding, would be measured.
        args = ("--max-model-len", str(MAX_LEN), "--stream-interval", "50")
        with VllmServer(served_model(folder), folder / "server.log", env, *args) as server:
            yield server


def _turn(server: VllmServer, rates: _Rates) -> None:
    with _round(server):
        rates.nonces_alone.append(_rate(server, None, TURN_S)[1])
    alone = _Streams(server)
    rates.tokens_alone.append(_rate(server, alone, TURN_S)[0])
    _end(server, alone)
    # Others: those are soon done when nothing runs beside them.
    streams = _Streams(server)
    with _round(server):
        tokens, nonces = _rate(server, streams, TURN_S)
    _end(server, streams)
    rates.tokens.append(tokens)
    rates.nonces.append(nonces)


def _end(server: VllmServer, streams: _Streams) -> None:
    streams.close()
    wait_until(lambda: server.status()["running_requests"] == 0, 60, "the completions to end")


@contextmanager
def _round(server: VllmServer) -> Iterator[None]:
    server.pow("POST", "init/generate", ROUND).raise_for_status()
    wait_until(lambda: server.status()["total_checked"] > 0, 120, "the first batch")
    yield
    server.pow("POST", "stop").raise_for_status()


def _rate(server: VllmServer, streams: _Streams | None, seconds: float) -> tuple[float, float]:
    """Return tokens and nonces a second, for so long or until the first stream ends."""
    tokens = _num_tokens(server)
    began, checked = time.monotonic(), server.status()["total_checked"]
    while (took := time.monotonic() - began) < seconds and (streams is None or streams.all_run):
        time.sleep(min(0.05, seconds - took))
    assert took > 0.2, "a completion ended before there was anything to measure"
    checked = server.status()["total_checked"] - checked
    return (_num_tokens(server) - tokens) / took, checked / took


def _num_tokens(server: VllmServer) -> float:
    """Return how many tokens the server has made up to now."""
    text = server.client.get("/metrics").raise_for_status().text
    found = re.search(r"^vllm:generation_tokens_total\{.*\} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


if __name__ == "__main__":
    for figure in vllm_beside():
        sys.stdout.write(f"{figure.name}\n    {figure.measured}\n    {figure.against}")
        sys.stdout.write(f" {figure.against_name}\n    {figure.target}: {figure.value:.3g}\n")
