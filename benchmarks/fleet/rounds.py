"""The twenty rounds of a fleet's run: when each starts, how long it lasts, how it ends.

Times are shares of the run. Two groups are alike in share and lifetime, for Jain's index; others are
stopped early, find their own deadline, or end when enough nonces are checked. The last stop ends everything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks.fleet.gpu import INFO
from benchmarks.fleet.ledger import R_TARGET
from benchmarks.fleet.runner import BATCH_SIZE, SEQ_LEN
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import decided, draft_spec

#: Rounds that stay until they are stopped get a deadline this much later, as a share of the run.
SLACK = 0.5


@dataclass(frozen=True)
class Plan:
    """One round to be."""

    group: str
    start: float
    #: When it is stopped; None: it ends by itself.
    stop: float | None = None
    #: Its window, unless it is stopped.
    window: float = 1.0
    share: float = 1.0
    #: Nonces to check, as a share of what the fleet can do in the whole run; 0: no limit.
    nonces: float = 0.0


PLANS = (
    *[Plan("equal, all of the run", 0.0, stop=1.0)] * 5,
    *[Plan("equal, half of the run", 0.25, window=0.5, share=2.0)] * 4,
    Plan("counted", 0.08, nonces=0.005),
    Plan("counted", 0.30, nonces=0.005, share=2.0),
    Plan("counted", 0.50, nonces=0.005),
    Plan("counted", 0.70, nonces=0.005, share=2.0),
    Plan("stopped", 0.05, stop=0.17, share=0.5),
    Plan("stopped", 0.20, stop=0.35),
    Plan("stopped", 0.40, stop=0.60, share=3.0),
    Plan("stopped", 0.62, stop=0.70, share=5.0),
    Plan("short", 0.15, window=0.05, share=4.0),
    Plan("short", 0.45, window=0.05),
    Plan("short", 0.80, window=0.10),
)


@dataclass
class Timeline:
    """Starts and stops the rounds when it is time.

    Args:
        backend: of the fleet.
        seconds: length of the run.
        num_nonces: what the fleet can check in the whole run.
    """

    backend: Backend
    seconds: float
    num_nonces: float
    #: Round id of each plan, as far as they are started.
    started: dict[int, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _stopped: set[int] = field(default_factory=set)

    def next_event_s(self) -> float:
        """Return the seconds until the next start or stop; infinite when all is done."""
        now = (time.monotonic() - self._began) / self.seconds
        ahead = [p.start for n, p in enumerate(PLANS) if n not in self.started]
        ahead += [p.stop for n, p in enumerate(PLANS) if p.stop and n not in self._stopped]
        return (min(ahead, default=float("inf")) - now) * self.seconds

    def step(self) -> float | None:
        """Do what is due; return the Unix time of the last stop once that is done."""
        now = (time.monotonic() - self._began) / self.seconds
        for number, plan in enumerate(PLANS):
            if number not in self.started and now >= plan.start:
                self.started[number] = self._start(number, plan)
            if plan.stop and now >= plan.stop and number not in self._stopped:
                self.backend.store.close(self.started[number], RoundState.STOPPED, "by the plan")
                self._stopped.add(number)
        return time.time() if self.next_event_s() == float("inf") else None

    def _start(self, number: int, plan: Plan) -> str:
        length = plan.window if plan.stop is None else plan.stop - plan.start + SLACK
        draft = draft_spec(
            block_hash=f"0x{number:064x}",
            block_height=number,
            public_key=f"key-{number}",
            node_id=number,
            node_count=len(PLANS),
            window_s=length * self.seconds,
            seq_len=SEQ_LEN,
            batch_size=BATCH_SIZE,
            share=plan.share,
            max_nonces=max(1, round(plan.nonces * self.num_nonces)) if plan.nonces else None,
        )
        return self.backend.store.create(decided(draft, INFO, r_target=R_TARGET))
