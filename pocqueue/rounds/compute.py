"""Computes given nonces on the pool, ahead of rounds that search: a round of its own, waited for to its end.

Promises:
- What is asked for is computed by whatever GPUs serve the model, with the search's shape, each nonce once.
- The round ends when it is waited for no longer, or at its deadline if this process dies.
- Any process that knows its id may wait for it, as after a restart.

Everything here blocks: a service calls it in a thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pocqueue.errors import PocqueueError, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import ProofEntry, RoundStatus
from pocqueue.rounds.spec import MAX_SHARE, RoundState
from pocqueue.rounds.start import ModelWish, choose_model, decided, draft_spec, fitted
from pocqueue.rounds.store import START, Keys

#: How long to wait for new values before looking at the round again.
POLL_MS = 500
#: After this long without a range given to any GPU, a missing scheduler is an error.
NO_SCHEDULER_S = 5.0

#: Receives (nonces computed, nonces in all).
OnCount = Callable[[int, int], None]


class Computed(NamedTuple):
    """What became of given nonces."""

    values: dict[int, Any]  #: by nonce, as the proof scheme keeps them; artifacts: base64 text
    #: Why some are missing, to go behind a colon; empty: the round was worked on to its end. A nonce whose value
    #: is broken (NaN) is missing even then.
    missing: str


@dataclass(frozen=True, slots=True)
class Computation:
    """A round that computes given nonces."""

    backend: Backend
    round_id: str
    timeout_s: float  #: from now on, while Redis is away; the round's own end is in the store

    @classmethod
    def start(
        cls,
        backend: Backend,
        nonces: Sequence[int],
        *,
        asked_by: str,
        timeout_s: float,
        wish: ModelWish | None = None,
        round_id: str | None = None,
        **search: Any,
    ) -> Self:
        """Start to compute.

        Args:
            backend: store and pool.
            nonces: 1 to MAX_GIVEN of them, each 0 to the scheme's largest, each once; of any node.
            asked_by: who wants them, for Flower and `pocqueue round status`.
            timeout_s: after which the round ends by itself; at most an hour.
            wish: which of the deployed models; None: there is only one.
            round_id: a UUID for it; if there is such a round already, that one is waited for. None: a new one.
            search: fields of `RoundSpec`: `scheme` and its parameters, block_hash, public_key, seq_len, …

        Raises:
            InvalidRound: a field or a nonce is out of bounds, or no GPU can run such a forward pass.
            NoLiveGpu, ModelConflict: see `choose_model`.
            StoreError: see the class.
        """
        draft = draft_spec(
            share=MAX_SHARE,
            window_s=timeout_s,
            asked_by=asked_by,
            given_nonces=tuple(nonces),
            **search,
        )
        gpus = backend.pool.live()
        info, _ = choose_model(gpus, wish or ModelWish())
        spec = decided(fitted(draft, gpus, info).draft, info)
        # Named here, so that it can be stopped even if the reply to `create` is lost.
        made = cls(backend, round_id or str(uuid.uuid4()), timeout_s)
        try:
            backend.store.create(spec, made.round_id)
        except PocqueueError:
            made.stop()
            raise
        return made

    def wait(
        self, on_progress: OnCount | None = None, gives_up: Callable[[], bool] = lambda: False
    ) -> Computed:
        """Return what there is once all is computed, or the round is over.

        Args:
            on_progress: told whenever some came.
            gives_up: asked twice a second; once it says so, what there is by then is returned. The round goes on.

        Raises:
            UnknownRound: it is forgotten, an hour after its end.
            StoreError: see the class.
        """
        status, entries = follow(self.backend, self.round_id, self.timeout_s, on_progress, gives_up)
        values = {nonce: value for entry in entries for nonce, value in entry.proofs}
        is_whole = status.checked == status.spec.max_nonces
        return Computed(values, "" if is_whole else why_short(status))

    def stop(self) -> None:
        """End it, from any thread: `wait` returns within a second. One that is over stays as it ended."""
        with contextlib.suppress(PocqueueError):  # its window ends it then
            self.backend.store.close(self.round_id, RoundState.STOPPED, "not wanted any more")


def follow(
    backend: Backend,
    round_id: str,
    window_s: float,
    on_progress: OnCount | None = None,
    gives_up: Callable[[], bool] = lambda: False,
) -> tuple[RoundStatus, list[ProofEntry]]:
    """Collect all that a round of `max_nonces` keeps, until it is over or no scheduler is there for it.

    Args:
        window_s: from now on, how long to put up with a Redis that is away.
        on_progress: told whenever some came.
        gives_up: asked twice a second; once it says so, this returns.

    Returns:
        How it ended, or stands, too.

    Raises:
        StoreError: see the class.
    """
    store, cursor = backend.store, START
    found: list[ProofEntry] = []
    patience = time.monotonic() + window_s
    while True:
        try:
            # Before the proofs: once it is over, what is read next is all there will be.
            status = store.status(round_id)
            assert status.spec.max_nonces is not None
            over = not status.state.is_active or (
                status.checked + status.abandoned >= status.spec.max_nonces
            )
            entries = store.read_proofs(status, cursor, block_ms=None if over else POLL_MS)
            if not entries and (over or gives_up() or _no_scheduler(backend, status)):
                return status, found
        except StoreUnavailable:
            if gives_up() or time.monotonic() > patience:
                raise
            time.sleep(POLL_MS / 1000)
            continue
        found += entries
        if entries:
            cursor = entries[-1].cursor
            if on_progress is not None:
                on_progress(sum(len(entry.proofs) for entry in found), status.spec.max_nonces)


def why_short(status: RoundStatus) -> str:
    """Say why a round ended before all was computed, to go behind a colon."""
    if status.state.is_active and status.next_index == 0:
        return "no scheduler is there to give them to GPUs; start one with `pocqueue scheduler`"
    if status.abandoned:
        return f"{status.abandoned:,} were given up after failing on every GPU; the workers' logs say why"
    if status.state is RoundState.EXPIRED:
        return "its time was over; give it more, ask for fewer samples, or look at `pocqueue gpus`"
    return f"the round is {status.state.value}" + (f" ({status.reason})" if status.reason else "")


def _no_scheduler(backend: Backend, status: RoundStatus) -> bool:
    """Say whether a round waits for a scheduler that is not there."""
    if status.next_index > 0 or status.elapsed_s < NO_SCHEDULER_S:
        return False
    return not backend.client.exists(Keys.LEADER)
