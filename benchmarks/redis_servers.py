"""Redis servers against each other, as the bundled one: commits, memory of a round, start.

    python -m benchmarks.redis_servers NAME=/path/to/redis-server NAME=/path/to/valkey-server

Each server runs with the options of the bundled one, in turns with the others. Commits are those of GPU workers
(the Lua script), each client waiting for its reply: distances of 16 nonces a batch, half of them valid; then batches of
32 nonces that all count, of distances and of artifacts. On a busy machine trust the server's own processor time: it
does not grow when somebody else has the cores.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil

from benchmarks.machine import describe
from benchmarks.stats import Sample
from pocqueue.errors import StoreUnavailable
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds import redis_server
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import Assignment, BatchCommit
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.start import draft_spec
from pocqueue.settings import Settings

T = TypeVar("T")

NUM_TURNS = 5
NUM_CLIENTS = 2
#: Of each client in a turn; a round each.
NUM_COMMITS = 2_000


def distance(nonce: int) -> float:
    """Return a distance with as many digits as real ones have."""
    return 1.3 + nonce / 1e9


def artifact(nonce: int) -> str:
    """Return the base64 of 24 bytes."""
    return base64.b64encode(hashlib.sha256(b"%d" % nonce).digest()[:24]).decode()


@dataclass(frozen=True)
class Kind:
    """What rounds consist of."""

    title: str
    proof: Mapping[str, Any]  #: fields of the round that say what is computed
    value: Callable[[int], Any]  #: of a nonce
    batch_size: int = 32
    step: int = 1  #: from one valid nonce to the next


USUAL = Kind("", {"r_target": 1.4}, distance, batch_size=16, step=2)
ALL_COUNT = (
    Kind("distances, all valid", {"r_target": 1.4}, distance),
    Kind("artifacts", {"scheme": "artifact"}, artifact),
)


def commit(state_dir: Path, block_hash: str, kind: Kind) -> None:
    """Run a round of one worker: assign it whole, commit it batch by batch."""
    size = kind.batch_size
    num_nonces = NUM_COMMITS * size
    with Backend.open(Settings(state_dir=state_dir)) as backend:
        spec = draft_spec(
            block_hash=block_hash,
            public_key="bench",
            batch_size=size,
            max_nonces=num_nonces,
            **kind.proof,
        )
        round_id = backend.store.create(spec)
        [given] = backend.store.assign_ranges([Assignment(round_id, "gpu0", "w0", num_nonces)])
        assert given is not None
        for start in range(0, num_nonces, size):
            nonces = range(start, start + size, kind.step)
            valid = Proofs.of((nonce, kind.value(nonce)) for nonce in nonces)
            batch = BatchCommit(round_id, given.range_id, start, start + size, valid)
            backend.store.commit_batch(batch)


@dataclass(frozen=True)
class Cost:
    """What rounds cost a server."""

    seconds: float
    cpu_s: float
    used: float  #: bytes
    resident: float  #: bytes


def rounds(state_dir: Path, kind: Kind) -> Cost:
    """Run a round for each client, all at once."""
    before = _info(state_dir)
    clients = [
        multiprocessing.Process(target=commit, args=(state_dir, f"{kind.title}-{number}", kind))
        for number in range(NUM_CLIENTS)
    ]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.perf_counter() - began
    after = _info(state_dir)
    return Cost(took, *(after[name] - before[name] for name in ("cpu_s", "used", "resident")))


def turn(executable: Path, number: int) -> dict[str, float]:
    """Start a server on an empty folder, commit, start it again with what it has; return the figures."""
    with (
        tempfile.TemporaryDirectory(prefix="pq-") as folder,
        patch.object(redis_server, "executable", lambda: executable),
    ):
        state_dir = Path(folder)
        server = RedisServer(state_dir)
        figures = {"start, nothing kept (ms)": 1000 * _seconds(server.ensure)}
        try:
            # Scripts and buffers are there once, whatever the number of rounds.
            commit(state_dir, "block", USUAL)
            empty = _info(state_dir)["resident"]
            cost, num = rounds(state_dir, USUAL), NUM_CLIENTS * NUM_COMMITS
            figures |= {
                "commits/s": num / cost.seconds,
                "server's processor time of a commit (us)": 1e6 * cost.cpu_s / num,
                "memory of a round (kB)": cost.used / NUM_CLIENTS / 1e3,
                "resident memory of a round (kB)": cost.resident / NUM_CLIENTS / 1e3,
                "resident memory of an empty server (MB)": empty / 1e6,
                "file of a round (kB)": _size(server.folder) / NUM_CLIENTS / 1e3,
            }
            server.stop()
            figures["start, with these rounds (ms)"] = 1000 * _seconds(
                lambda: _load(server, state_dir)
            )
            for kind in _there_and_back(ALL_COUNT, number):
                cost = rounds(state_dir, kind)
                figures |= {
                    f"{kind.title}: processor time of a commit (us)": 1e6 * cost.cpu_s / num,
                    f"{kind.title}: memory of a nonce (bytes)": cost.used / num / kind.batch_size,
                }
        finally:
            server.stop()
        return figures


def _there_and_back(sides: Sequence[T], number: int) -> Sequence[T]:
    """Return what takes turns: A B, B A, A B …, so that a machine's moods fall on all of them."""
    return sides if number % 2 == 0 else sides[::-1]


def _load(server: RedisServer, state_dir: Path) -> None:
    server.ensure()
    while True:  # it answers while it loads, with an error
        try:
            with Backend.open(Settings(state_dir=state_dir)) as backend:
                backend.store.list_ids()
                return
        except StoreUnavailable:
            continue


def _info(state_dir: Path) -> dict[str, float]:
    with Backend.open(Settings(state_dir=state_dir)) as backend:
        info: Mapping[str, Any] = backend.client.info()
    process = psutil.Process(int(info["process_id"]))
    times = process.cpu_times()
    return {
        "cpu_s": times.user + times.system,
        "used": float(info["used_memory"]),
        "resident": float(process.memory_info().rss),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.aof"))


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure the servers of the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("servers", nargs="+", help="NAME=/path/to/its/executable")
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    servers = {name: Path(path) for name, _, path in (s.partition("=") for s in arguments.servers)}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for number in range(arguments.turns):
        for name in _there_and_back(list(servers), number):
            turns[name].append(turn(servers[name], number))
    found = {
        name: {figure: Sample([t[figure] for t in own], "") for figure in own[0]}
        for name, own in turns.items()
    }
    for figure in next(iter(found.values())):
        print(figure)
        for name, samples in found.items():
            print(f"    {name:<12} {samples[figure]}")
    if arguments.output is not None:
        figures = {
            name: {figure: sample.to_dict() for figure, sample in samples.items()}
            for name, samples in found.items()
        }
        arguments.output.write_text(json.dumps({"machine": describe(), **figures}, indent=2))


if __name__ == "__main__":
    main()
