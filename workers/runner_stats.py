"""What a runner of ranges did, and the record that a heartbeat makes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from pocqueue.rounds.pool import Gpu, Latency, shape_key
from pocqueue.rounds.range_search import RangeSearch


@dataclass
class RunnerStats:
    """Counters of one runner. Not locked: a runner with several threads locks around each use."""

    checked: int = 0
    busy_s: float = 0.0
    #: Since when the engine has its range at hand, and its forward pass at hand; None: it has none.
    busy_since: float | None = None
    pass_since: float | None = None
    #: Seconds that the forward pass at hand has run; 0 between two. Of a snapshot only.
    pass_s: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    #: The best rate of each shape so far.
    best_rates: dict[str, float] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    last_error: str = ""
    failures: int = 0  #: engine failures in a row
    #: Tokens of the largest pass that is still to be tried, since a larger one did not fit; 0: none failed.
    max_pass_tokens: int = 0
    #: How long commits took, from the first try to the answer.
    commits: Latency = field(default_factory=Latency)
    #: How long the engine was idle between two ranges of which the second one was here already.
    gaps: Latency = field(default_factory=Latency)

    def snapshot(self, now: float) -> RunnerStats:
        """Return a copy in which the times at hand are counted up to now."""
        pass_since = self.pass_since  # read once: the engine's thread sets it without a lock
        return replace(
            self,
            busy_s=self.busy_s + (now - self.busy_since if self.busy_since is not None else 0.0),
            pass_s=max(0.0, now - pass_since) if pass_since is not None else 0.0,
            rates=dict(self.rates),
            best_rates=dict(self.best_rates),
            held=set(self.held),
        )

    def set_rate(self, seq_len: int, batch_size: int, rate: float) -> None:
        """Set the rate of a shape, measured outside of ranges (by a warm-up)."""
        shape = shape_key(seq_len, batch_size)
        self.rates[shape] = self.best_rates[shape] = rate

    def too_large(self, tokens: int) -> None:
        """Learn that a pass of so many tokens does not fit: the next one has half as many at most."""
        self.max_pass_tokens = least_limit(self.max_pass_tokens, max(1, tokens // 2))

    def begin(self, search: RangeSearch, now: float, free_since: float) -> None:
        """Begin the search of a range with the engine.

        Args:
            search: of the range.
            now: monotonic seconds.
            free_since: when the engine became free.
        """
        self.busy_since = now
        spec = search.status.spec
        best = self.best_rates.get(shape_key(spec.seq_len, spec.batch_size), 0.0)
        # Not how long a batch took lately: after a stall none would ever seem to fit again.
        batch_s = spec.batch_size / best if best > 0 else 0.0
        search.begin(now, batch_s=batch_s, free_since=free_since)

    def end(self, search: RangeSearch, now: float) -> None:
        """Count what a search took; the rate of a range weighs as much as all before it."""
        if self.busy_since is not None:
            self.busy_s += now - self.busy_since
            self.busy_since = None
        if search.gap_s is not None:
            self.gaps = self.gaps.add(search.gap_s)
        if (rate := search.rate(now)) is None:
            return
        self.failures = 0
        shape = shape_key(search.status.spec.seq_len, search.status.spec.batch_size)
        known = self.rates.pop(shape, rate)
        # Last in the dict: `Gpu.rate` estimates unknown shapes from the first, the warm-up's.
        self.rates[shape] = (known + rate) / 2
        self.best_rates[shape] = max(rate, self.best_rates.get(shape, 0.0))


@dataclass
class Member:
    """One worker as a member of the pool: makes the records that its heartbeats carry."""

    gpu: Gpu  #: what stays the same: queue, worker, host, process and model
    _told_busy_s: float = field(default=0.0, init=False)
    _told_at: float = field(default_factory=time.monotonic, init=False)

    def record(self, stats: RunnerStats, *, draining: bool = False) -> Gpu:
        """Return what there is to tell now; the load is that since the record before."""
        now = time.monotonic()
        busy_s, passed_s = stats.busy_s - self._told_busy_s, now - self._told_at
        self._told_busy_s, self._told_at = stats.busy_s, now
        most = least_limit(self.gpu.info.max_pass_tokens, stats.max_pass_tokens)
        load = min(1.0, max(0.0, busy_s / passed_s)) if passed_s > 0 else 0.0
        return replace(
            self.gpu,
            info=replace(self.gpu.info, max_pass_tokens=most),
            rates=stats.rates,
            best_rates=stats.best_rates,
            held=tuple(sorted(stats.held)),
            load=round(load, 3),
            pass_s=round(stats.pass_s, 3),
            checked=stats.checked,
            draining=draining,
            last_error=stats.last_error,
            commits=stats.commits,
            gaps=stats.gaps,
        )


def least_limit(*limits: int) -> int:
    """Return the least of these limits, of which 0 is none."""
    return min(filter(None, limits), default=0)
