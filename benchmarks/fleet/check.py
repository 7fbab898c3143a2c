"""Holds a fleet's store against what the fleet itself wrote down, nonce for nonce.

While rounds are active, `audit` looks at one moment of each: every nonce index below the next one to be given
is counted, out on a GPU, waiting to be given again or given up, and none is two of these. Afterwards
`compare` wants every valid nonce of every committed batch in its round's stream once, with its distance, and
nothing else there.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.fleet.ledger import Books, Ints, distance, valid_of_runs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import OutstandingRange
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import Keys


def audit(backend: Backend, round_ids: list[str]) -> list[str]:
    """Return what is wrong with active rounds right now."""
    wrong = []
    for round_id in round_ids:
        with backend.client.pipeline(transaction=True) as pipe:
            pipe.hmget(Keys.of_round(round_id, "round"), "state", "next_index", "checked")
            pipe.hgetall(Keys.of_round(round_id, "ranges"))
            pipe.lrange(Keys.of_round(round_id, "returned"), 0, -1)
            pipe.lrange(Keys.of_round(round_id, "abandoned"), 0, -1)
            pipe.hgetall(Keys.of_round(round_id, "cover_starts"))
            (state, next_index, checked), ranges, returned, abandoned, cover = pipe.execute()
        if state != RoundState.ACTIVE.value:
            continue
        outs = [OutstandingRange.parse(round_id, i, record) for i, record in ranges.items()]
        counted = [(int(a), int(b)) for a, b in cover.items()]
        waiting = [(int(a), int(b)) for a, b, *_ in (text.split() for text in returned + abandoned)]
        pieces = sorted([*counted, *((o.done, o.stop) for o in outs if o.left), *waiting])
        ends = [0, *(stop for _, stop in pieces)]
        starts = [*(start for start, _ in pieces), int(next_index)]
        if ends != starts:
            wrong.append(f"{round_id}: {pieces} do not cover 0 to {next_index} without overlap")
        if int(checked) != sum(stop - start for start, stop in counted):
            wrong.append(f"{round_id}: checked is {checked}, but {counted} are counted")
    return wrong


def compare(backend: Backend, round_ids: list[str], books: Books) -> dict[str, Any]:
    """Hold every round against the ledger; return counts of what is wrong, and of what there is.

    Returns:
        `lost` valid nonces that were committed and are not in a stream, `twice` those that are there
        more than once, `foreign` those that nobody committed, `wrong` one sentence a contradiction
        of counters and coverage.
    """
    lost = twice = foreign = entries = 0
    totals = dict.fromkeys(("checked", "valid", "ranges_made", "ranges_returned", "abandoned"), 0)
    wrong: list[str] = []
    for round_id in round_ids:
        status = backend.store.status(round_id)
        runs = backend.store.coverage(round_id)
        nonces: list[int] = []
        dist: list[float] = []
        for entry in backend.store.iter_proofs(status):
            nonces += entry.proofs.nonces
            dist += entry.proofs.values
            entries += 1
        spec = status.spec
        found = (np.array(nonces, np.int64) - spec.node_id) // spec.node_count
        order = np.argsort(found, kind="stable")
        expected = valid_of_runs(runs)
        unique = np.unique(found)
        lost += len(np.setdiff1d(expected, unique, assume_unique=True))
        foreign += len(np.setdiff1d(unique, expected, assume_unique=True))
        twice += len(found) - len(unique)
        told = [distance(index) for index in found[order].tolist()]
        if told != np.array(dist)[order].tolist():
            wrong.append(f"{round_id}: distances in the stream are not those of their nonces")
        wrong += [f"{round_id}: {text}" for text in _counted(runs, round_id, books)]
        covered = sum(stop - start for start, stop in runs)
        if status.checked != covered or status.valid != len(found):
            wrong.append(f"{round_id}: {status.checked} checked, {covered} covered")
        if status.state is RoundState.COMPLETED and covered != spec.max_nonces:
            wrong.append(f"{round_id}: completed with {runs}")
        for name in totals:
            totals[name] += getattr(status, name)
    return {
        "lost": lost,
        "twice": twice,
        "foreign": foreign,
        "wrong": wrong,
        "entries": entries,
        **totals,
    }


def _counted(runs: list[tuple[int, int]], round_id: str, books: Books) -> list[str]:
    """Return what is wrong with the coverage of a round, given its committed batches."""
    wrong = []
    if not all(before[1] < after[0] for before, after in pairwise(runs)):
        wrong.append("runs of counted indices overlap or touch")
    sure = np.asarray(books.committed.get(round_id, np.empty((0, 2), np.int64)))
    sure = sure[np.argsort(sure[:, 0])]
    if (sure[1:, 0] < sure[:-1, 1]).any():
        wrong.append("two batches that were both told to count overlap")
    both = np.concatenate([sure, np.array(_taken(runs, sure, books, round_id)).reshape(-1, 2)])
    if merged(both.astype(np.int64)) != runs:
        wrong.append("what counts is not what was committed")
    return wrong


def _taken(
    runs: list[tuple[int, int]], sure: Ints, books: Books, round_id: str
) -> list[tuple[int, int]]:
    """Return the batches that count though their GPU died before it was told."""
    starts = set(sure[:, 0].tolist())
    return [
        (start, stop)
        for start, stop in books.unknown.get(round_id, [])
        if start not in starts and any(a <= start and stop <= b for a, b in runs)
    ]


def merged(pieces: Ints) -> list[tuple[int, int]]:
    """Return disjoint runs, in order, that cover the same indices as rows of (start, end)."""
    runs: list[tuple[int, int]] = []
    for start, stop in pieces[np.argsort(pieces[:, 0])].tolist():
        if runs and runs[-1][1] >= start:
            runs[-1] = (runs[-1][0], max(runs[-1][1], stop))
        else:
            runs.append((start, stop))
    return runs
