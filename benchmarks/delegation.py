"""From a batch on a GPU worker to the chain's 200 by way of both nodes, and what the service costs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx

from benchmarks.artifact_receiver import artifact_figure
from benchmarks.delegation_polls import delegation_polls
from benchmarks.latency import committed, wait_idle
from benchmarks.services import (
    Receiver,
    big_client,
    big_node,
    small_node,
    start_body,
    wait_until,
)
from benchmarks.stats import Figure, Sample
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings

#: Length of the measured part of a session.
SESSION_S = 10.0
#: How often a client without cursors asks.
OLD_POLL_S = 5.0
NUM_STARTS = 5


def delegation(backend: Backend, settings: Settings, r_target: float, folder: Path) -> list[Figure]:
    """Measure latency, start, and the cost of twenty sessions."""
    receiver = Receiver()
    with contextlib.ExitStack() as at_end:
        at_end.callback(receiver.close)
        big_url, _ = at_end.enter_context(
            big_node(settings, folder / "delegation.log", DELEGATION_MAX_SESSIONS="30")
        )
        node = at_end.enter_context(small_node(settings, big_url, folder / "small"))
        ours, theirs = _latencies(backend, receiver, big_url, node, r_target)
        artifacts = _artifacts(backend, receiver, node)
        starts = [_start(backend, receiver, node, r_target, n) for n in range(NUM_STARTS)]
    latency, start = Sample(ours, "ms"), Sample(starts, "s")
    return [
        Figure(
            "commit on a worker to signed batch at the receiver",
            latency,
            Sample(theirs, "ms"),
            f"a client without cursors that asks every {OLD_POLL_S:.0f} s",
            latency.median,
            "median under 100 ms",
            latency.median < 100,
        ),
        artifacts,
        Figure(
            "small node's start to its first batch",
            start,
            None,
            "",
            start.median,
            "median under 1 s",
            start.median < 1,
        ),
        delegation_polls(),
    ]


def _latencies(
    backend: Backend, receiver: Receiver, big_url: str, node: httpx.Client, r_target: float
) -> tuple[list[float], list[float]]:
    """Return milliseconds from commit to acceptance, of each batch: by our client, and by one without cursors.

    Both read a session of their own at the same time. A batch is committed when Redis says so: its
    stream's ids are that clock, of the same machine.
    """
    old_arrived: dict[int, float] = {}
    block = f"latency-{time.time_ns()}"
    _generate(node, block, r_target, receiver.url)
    with big_client(big_url) as client:
        old_session = client.post("/start", json=start_body(f"{block}-old", r_target)).json()
        deadline = time.monotonic() + SESSION_S
        while time.monotonic() < deadline:
            time.sleep(OLD_POLL_S)
            page = client.get(f"/batches/{old_session['session_id']}").json()
            now = time.time()
            old_arrived |= {n: now for batch in page["batches"] for n in batch["nonces"]}
        client.post("/stop", json={"session_id": old_session["session_id"]})
    ours_at, arrived = _ended(backend, receiver, node, block)
    ours = [1000 * (arrived[nonce] - at) for nonce, at in ours_at.items()]
    old = committed(backend, old_session["session_id"])
    theirs = [1000 * (at - old[nonce]) for nonce, at in old_arrived.items()]
    return ours, theirs


def _artifacts(backend: Backend, receiver: Receiver, node: httpx.Client) -> Figure:
    """Measure the same for artifacts, by our client alone."""
    block = f"artifacts-{time.time_ns()}"
    _generate(node, block, None, receiver.url)
    wait_until(lambda: receiver.nonces(block), 60, "the first artifacts")
    time.sleep(SESSION_S)
    figure = artifact_figure("by both nodes", *_ended(backend, receiver, node, block))
    wait_idle(backend)
    return figure


def _ended(
    backend: Backend, receiver: Receiver, node: httpx.Client, block: str
) -> tuple[dict[int, float], dict[int, float]]:
    """End the node's session; return when each of its nonces was committed, and when it arrived; Unix seconds."""
    session_id = node.get("/status").json()["session_id"]
    node.post("/stop").raise_for_status()
    at = committed(backend, session_id)
    wait_until(lambda: len(receiver.nonces(block)) >= len(at), 30, "the rest of the batches")
    return at, receiver.nonces(block)


def _start(
    backend: Backend, receiver: Receiver, node: httpx.Client, r_target: float, number: int
) -> float:
    block = f"start-{number}-{time.time_ns()}"
    began = time.time()
    _generate(node, block, r_target, receiver.url)
    wait_until(lambda: receiver.nonces(block), 30, "the first batch")
    first = min(receiver.nonces(block).values())
    node.post("/stop").raise_for_status()
    # What is left of it would be in the way of the next one.
    wait_idle(backend)
    return first - began


def _generate(node: httpx.Client, block: str, r_target: float | None, url: str) -> None:
    body = start_body(block, r_target) | {"url": url}
    node.post("/init/generate", json=body).raise_for_status()
