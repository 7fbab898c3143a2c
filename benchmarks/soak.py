"""`make soak`: twenty sessions share the pool for a whole window, under load, with a kill in the middle.

    python -m benchmarks.soak --output soak.json

Two of the sessions are of real small nodes, nine of clients that keep a cursor and wait, nine of clients
without cursors, whose batches are drained. All are held against the store at the end: every nonce that
was committed has to be with its reader, once. In the middle the delegation service is killed and
started again on its port, and everybody has to go on by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import describe
from benchmarks.services import (
    Receiver,
    big_client,
    big_node,
    free_port,
    small_node,
    start_body,
    wait_until,
)
from pocqueue.engine import load_local_engine
from pocqueue.local_stack import local_stack
from pocqueue.measure.samples import sample_draft, sample_engine
from pocqueue.measure.valid_rate import r_target_for
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings

NUM_SMALL_NODES = 2
NUM_CURSORS = 9
NUM_DRAINS = 9
POLLS_PER_S = 2
TOLERANCE_S = 120.0


@dataclass
class Reader:
    """One session and who reads it."""

    kind: str
    session_id: str = ""
    nonces: list[int] = field(default_factory=list)
    polls_ms: list[float] = field(default_factory=list)
    failures: int = 0
    #: Of the drained kind: replies whose batches came again after a broken one.
    repeated: int = 0


def main() -> None:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("soak.json"))
    parser.add_argument("--window", type=float, default=330.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pocqueue-soak-") as folder:
        settings = Settings.load().model_copy(
            update={"state_dir": Path(folder), "redis_url": None, "model": "embedded"}
        )
        report = run(settings, Path(folder), given.window)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if report["lost"] or report["twice"] or report["late"] or report["bad_signatures"]:
        sys.exit(1)


def run(settings: Settings, folder: Path, window_s: float) -> dict[str, Any]:
    """Run one window; return the report."""
    engine = load_local_engine(settings)
    distances = sample_engine(engine, sample_draft("calibration"), 512)
    r_target = r_target_for(distances, 0.1).r_target
    engine.close()
    variables = {
        "DELEGATION_WINDOW_SECONDS": str(window_s),
        "DELEGATION_MAX_SESSIONS": "20",
    }
    receiver = Receiver()
    logs = folder / "logs"
    with contextlib.ExitStack() as at_end:
        at_end.callback(receiver.close)
        stack = at_end.enter_context(local_stack(settings, flower=False, log_dir=logs))
        backend = at_end.enter_context(Backend.open(settings))
        stack.wait_live(backend.pool, 120)
        service = at_end.enter_context(contextlib.ExitStack())
        port = free_port()
        url, process = service.enter_context(
            big_node(settings, logs / "delegation.log", port=port, **variables)
        )
        nodes = [
            at_end.enter_context(small_node(settings, url, folder / f"small{n}", **variables))
            for n in range(NUM_SMALL_NODES)
        ]
        readers = [Reader("small node") for _ in nodes]
        readers += [Reader("cursor") for _ in range(NUM_CURSORS)]
        readers += [Reader("drained") for _ in range(NUM_DRAINS)]
        began = time.monotonic()
        for number, node in enumerate(nodes):
            block = f"soak-{number}"
            body = start_body(block, r_target) | {"url": receiver.url}
            node.post("/init/generate", json=body).raise_for_status()
            readers[number].session_id = node.get("/status").json()["session_id"]
        threads = [
            threading.Thread(target=_read, args=(reader, url, f"soak-{n}", r_target, window_s))
            for n, reader in enumerate(readers)
            if reader.kind != "small node"
        ]
        for thread in threads:
            thread.start()
        with big_client(url) as client:
            wait_until(
                lambda: client.get("/status").json()["active_sessions"] == len(readers),
                30,
                "all sessions",
            )
            full = client.post("/start", json=start_body("one-too-many", r_target)).status_code
        cpu, memory = [], []
        while time.monotonic() - began < window_s / 2:
            cpu.append(_cpu(process.pid))
            memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        process.kill()
        service.close()
        killed_s = time.monotonic() - began
        time.sleep(5.0)
        _, process = service.enter_context(
            big_node(settings, logs / "delegation.log", port=port, **variables)
        )
        while time.monotonic() - began < window_s:
            cpu.append(_cpu(process.pid))
            memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        for thread in threads:
            thread.join(TOLERANCE_S)
        for number, node in enumerate(nodes):
            expected = _nonces(backend, readers[number].session_id)
            wait_until(
                lambda n=number, e=expected: len(receiver.nonces(f"soak-{n}")) >= len(e),
                TOLERANCE_S,
                "the last batches at the receiver",
            )
            readers[number].nonces = list(receiver.nonces(f"soak-{number}"))
            wait_until(
                lambda node=node: node.get("/status").json()["status"] == "STOPPED", 30, "the end"
            )
        return {
            "machine": describe(),
            "window_s": window_s,
            "r_target": r_target,
            "killed_after_s": round(killed_s, 1),
            "status_of_session_21": full,
            **_compare(backend, readers),
            "bad_signatures": receiver.bad,
            "twice_at_the_receiver": receiver.repeated,
            "service_cpu_percent": _spread(cpu),
            "service_memory_mib": _spread(memory),
            "poll_ms": _spread([ms for reader in readers for ms in reader.polls_ms]),
            "failed_polls": sum(reader.failures for reader in readers),
        }


def _read(reader: Reader, url: str, block: str, r_target: float, window_s: float) -> None:
    """Start a session and read it to its end, as one kind of client does."""
    give_up = time.monotonic() + window_s + TOLERANCE_S
    with big_client(url) as client:
        body = start_body(block, r_target)
        reader.session_id = client.post("/start", json=body).raise_for_status().json()["session_id"]
        cursor, active, seen = "", True, set[int]()
        while active and time.monotonic() < give_up:
            query = {"cursor": cursor, "wait": "10"} if reader.kind == "cursor" else {}
            sent = time.monotonic()
            try:
                page = client.get(f"/batches/{reader.session_id}", params=query)
                page.raise_for_status()
            except httpx.HTTPError:
                reader.failures += 1
                time.sleep(1.0)
                continue
            if reader.kind == "drained":
                reader.polls_ms.append(1000 * (time.monotonic() - sent))
                time.sleep(1 / POLLS_PER_S)
            answer = page.json()
            cursor, active = answer["cursor"], answer["session_active"]
            for batch in answer["batches"]:
                if seen.issuperset(batch["nonces"]):
                    reader.repeated += 1
                    continue
                seen.update(batch["nonces"])
                reader.nonces += batch["nonces"]


def _compare(backend: Backend, readers: list[Reader]) -> dict[str, Any]:
    """Hold what was read against the store."""
    lost = twice = late = 0
    sessions: list[dict[str, Any]] = []
    for reader in readers:
        status = backend.store.status(reader.session_id)
        committed = _nonces(backend, reader.session_id)
        lost += len(set(committed) - set(reader.nonces))
        twice += len(reader.nonces) - len(set(reader.nonces))
        entries = backend.store.iter_proofs(status)
        late += sum(int(e.cursor.partition("-")[0]) > status.deadline_ms for e in entries)
        sessions.append(
            {
                "kind": reader.kind,
                "state": status.state.value,
                "checked": status.checked,
                "valid": status.valid,
                "read": len(reader.nonces),
                "batches_that_came_again": reader.repeated,
            }
        )
    checked = [session["checked"] for session in sessions]
    return {
        "lost": lost,
        "twice": twice,
        "late": late,
        "nonces_checked": sum(checked),
        "fairness_min_over_max": round(min(checked) / max(checked), 3),
        "sessions": sessions,
    }


def _nonces(backend: Backend, session_id: str) -> list[int]:
    entries = backend.store.iter_proofs(backend.store.status(session_id))
    return [nonce for entry in entries for nonce in entry.proofs.nonces]


def _cpu(pid: int) -> float:
    """Return per cent of a core over the next second."""
    return float(psutil.Process(pid).cpu_percent(1.0))


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "max": round(ordered[-1], 2),
    }


if __name__ == "__main__":
    main()
