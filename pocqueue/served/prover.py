"""A proof round on a served model: its results, the gate before inference, and the search loop.

Promises:
- GENERATING and VALIDATING close the gate; every way out of them opens it: a stop, a failure, the end
  of `max_round_s`, a client that never comes back.
- Requests that run when a round begins are let finish, for `drain_s` at most; then the round begins
  beside them, batch by batch, and leaves them their share of the time (`ServedModel.take_turn`).
- A stop is answered at once. The batch at hand cannot be interrupted; its result is thrown away.
- One batch at a time is computed, whether it is searched or checked, and they take turns. A search takes
  its nonces when its turn has come, so each nonce is searched at most once in a round.
- A batch of a search that the engine fails at is tried again, after each of `retry_pauses_s`; then, or at once if the
  engine is dead, the round ends as failed, with the reason in the status. It can go on with that batch.
- What a round found is delivered for `grace_s` after its end, or `flush_s` if the server ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from pocqueue.errors import EngineError, PocqueueError
from pocqueue.poc.batch import Batch, batches_of
from pocqueue.poc.config import PoCState, PoCStats
from pocqueue.poc.fields import HttpUrl
from pocqueue.poc.proofs import ReceivedBatch, Verdict, check_length
from pocqueue.poc.scheme import ProofSearch
from pocqueue.poc.sender import CallbackQueue
from pocqueue.served.found import Found
from pocqueue.served.gate import InferenceGate
from pocqueue.served.leaving import Leaving
from pocqueue.served.model import ServedModel

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_BUSY = {PoCState.GENERATING, PoCState.VALIDATING}


class NoRound(PocqueueError):
    """A round is asked for, and there is none."""

    http_status = 400


class RoundRunning(PocqueueError):
    """A round is being searched; it has to be stopped first."""

    http_status = 409


class ServedRound(ProofSearch):
    """What to search on the served model, and the callback URL for what is found."""

    callback_url: HttpUrl | None = None


@dataclass(eq=False)
class Prover:
    """Runs proof rounds on a served model. Used from its event loop only."""

    model: ServedModel
    gate: InferenceGate  #: before the inference routes
    drain_s: float  #: seconds that running requests get to finish before the first batch
    max_round_s: float  #: seconds after which a round ends by itself
    #: Makes what delivers to the callback URL of a round.
    make_sender: Callable[[ServedRound, str], CallbackQueue] = lambda _, url: CallbackQueue(url)
    grace_s: float = 300.0  #: seconds for which callbacks are tried after their round has ended
    flush_s: float = 10.0  #: the same when the server ends
    #: Before each further try of a batch of a search, in seconds.
    retry_pauses_s: Sequence[float] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        self._state = PoCState.IDLE
        self._error: str | None = None
        self._round: ServedRound | None = None
        self._resting = asyncio.Event()  #: set while no round is being searched
        self._resting.set()
        self.found = Found()  #: what the round has come to
        #: Of the round; None: it has no callback URL. Closing once the round was stopped.
        self._sender: CallbackQueue | None = None
        self._leaving = Leaving(
            self.grace_s, self.flush_s
        )  #: senders of this round and earlier ones
        #: Rounds that were stopped or made room for another.
        self._num_ends = 0
        self._computing: asyncio.Future[list[Any]] | None = None
        self._search: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def status(self) -> dict[str, Any]:
        """Return how the round stands, as JSON-ready values; its valid nonces are in `found`."""
        stats, sender = self.found.stats, self._sender
        return {
            "state": self._state.value,
            "total_checked": stats.total_checked,
            "total_valid": stats.total_valid,
            "elapsed_seconds": stats.elapsed,
            "rate_per_second": stats.rate,
            "total_nonfinite": stats.total_nonfinite,
            "failed": self._error is not None,
            "error": self._error,
            "callbacks_waiting": 0 if sender is None else sender.waiting,
            "callbacks_dropped": 0 if sender is None else sender.dropped,
            "callbacks_error": None if sender is None else sender.error,
        }

    @property
    def round(self) -> ServedRound | None:
        """The round at hand, or the last one; None: there was none."""
        return self._round

    @property
    def is_generating(self) -> bool:
        return self._state is PoCState.GENERATING

    def has_failed(self, asked: ServedRound) -> bool:
        """Say whether this very round was the last one, and has failed; `generate` then goes on with it."""
        return self._error is not None and self._round == asked

    async def resting(self) -> None:
        """Wait until no round is being searched."""
        await self._resting.wait()

    def init(self, asked: ServedRound) -> None:
        """Set up a round. One that validates is over with this.

        Raises:
            RoundRunning: one is being searched.
            InvalidRound: the model cannot run it, the node has no nonces, or the callback URL is none. Nothing
                changes.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        self.model.check(asked.batch_size, asked.seq_len)
        Found().take(asked)  # a node may be beyond the last nonce of its scheme
        if self._state is PoCState.GENERATING:
            raise RoundRunning("Round already in progress. POST /api/v1/pow/stop ends it.")
        self.model.check_alive()
        sender = self._sender_of(asked)
        self._retire_sender()
        self._round, self._sender = asked, sender
        # Where every nonce is kept, those who want them have a callback URL.
        self.found = Found(
            asked.proof.value_type,
            keeps=not asked.proof.keeps_all,
            stats=PoCStats(start_time=time.time()),
        )
        self._state, self._error = PoCState.IDLE, None
        self._num_ends += 1
        self._leave()

    def generate(self) -> None:
        """Close the gate and search, from where the round stands; in the background.

        Raises:
            NoRound: there is no round.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        asked = self._require_round()
        if self._state is PoCState.GENERATING:
            return
        self._enter(PoCState.GENERATING, asked)
        self.found.stats.resume()
        self._search = self._spawn(self._run(asked, self.found), "poc-generate")

    def validate(self) -> None:
        """Close the gate and stop searching; proofs are checked as they come.

        Raises:
            NoRound: there is no round.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        self._enter(PoCState.VALIDATING, self._require_round())
        self._end_search()

    def stop(self) -> None:
        """End the round, if any, and open the gate."""
        self._end_search()
        self._retire_sender()
        self._num_ends += 1
        self._state = PoCState.STOPPED
        self._resting.set()
        self._leave()

    async def check(self, claimed: ReceivedBatch) -> Verdict:
        """Recompute a proof for the round's block, which it was made for or not; tell the callback URL.

        Raises:
            NoRound: there is no round, or it ended meanwhile.
            InvalidRound: the proof is none.
            EngineError: the engine failed; so did the round, if it was searching or validating.
        """
        asked, sender, num_ends = self._round, self._sender, self._num_ends
        if asked is None:
            raise NoRound("No round configured")
        proof, proofs = asked.proof, claimed.proofs
        check_length(proof.field, proofs.values, proofs.nonces, proof.noun)
        computed: list[Any] = []
        theirs = asked.model_copy(
            update={"public_key": claimed.public_key, "node_id": claimed.node_id}
        )
        # Batch by batch: many of them must not outlast the round that they are checked for.
        for batch in batches_of(theirs, proofs.nonces):
            try:
                computed += await self.recompute(batch)
            except EngineError as exc:
                # Not a round that began meanwhile.
                if self._round is asked and self._state in _BUSY:
                    self._fail(str(exc))
                raise
            if self._num_ends != num_ends:
                raise NoRound("The round ended while the proof was checked.")
        verdict = proof.judge(proofs, computed)
        if sender is not None and not sender.closing:
            sender.send("validated", proof.verdict_body(theirs, verdict))
        return verdict

    async def close(self) -> None:
        """End everything and deliver the callbacks that wait, for `flush_s` at most."""
        self.stop()
        await self._leaving.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._computing is not None:
            self._computing.cancel()
        await self.model.close()

    async def _run(self, asked: ServedRound, found: Found) -> None:
        """Search until cancelled, which is what ends a round's search."""
        try:
            if not await self._drained():
                logger.warning(
                    "%d requests still run after %.0f s; the proof round begins beside them.",
                    max(self.gate.running, self.model.num_unfinished()),
                    self.drain_s,
                )
            while True:
                batch, values = await self._search_next(asked, found)
                self._commit(asked, found, batch, values)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the round must not seem to go on
            self._fail(str(exc) or type(exc).__name__)

    async def _search_next(self, asked: ServedRound, found: Found) -> tuple[Batch, list[Any]]:
        """Compute the next batch of a search, in several tries if need be.

        Raises:
            EngineError: the last try failed, or the engine is dead; the batch is the next one still.
            InvalidRound: there are no more nonces.
        """
        start = found.next_index
        for pause_s in (*self.retry_pauses_s, None):
            try:
                return await self._compute(lambda: found.take(asked))
            except EngineError as exc:
                found.next_index = start
                if pause_s is None or self.model.is_dead:
                    raise
                logger.warning("A batch from index %d failed and is tried again: %s", start, exc)
                await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def recompute(self, batch: Batch) -> list[Any]:
        """Compute the values of a batch in turn, whatever round there is.

        Raises:
            InvalidRound, EngineError: as `ServedModel.values` does.
        """
        _, values = await self._compute(lambda: (batch, None))
        return values

    async def _compute(
        self, take: Callable[[], tuple[Batch, Batch | None]]
    ) -> tuple[Batch, list[Any]]:
        """Compute a batch in turn. When the caller is cancelled, the turn lasts until the batch is done.

        Args:
            take: called when the turn has come; returns the batch, and the next one if that is known.
        """
        await self.model.take_turn()
        try:
            batch, upcoming = take()
            self._computing = asyncio.ensure_future(self.model.values(batch, upcoming))
        except BaseException:
            self.model.turn.release()
            raise
        self._computing.add_done_callback(lambda _: self.model.turn.release())
        return batch, await asyncio.shield(self._computing)

    def _commit(self, asked: ServedRound, found: Found, batch: Batch, values: list[Any]) -> None:
        """Count a batch, keep its valid nonces and queue them for the callback URL."""
        stats, proof = found.stats, asked.proof
        valid, num_broken = proof.sift(batch.nonces, values)
        if num_broken and not stats.total_nonfinite:
            logger.warning(
                "The model gave %d %ss that are not finite for block %s; dropped",
                num_broken,
                proof.noun,
                asked.block_hash,
            )
        stats.total_checked += len(values)
        stats.total_nonfinite += num_broken
        found.keep(valid)
        if self._sender is not None and len(valid):
            self._sender.send("generated", proof.signed_body(asked, valid))

    async def _drained(self) -> bool:
        """Wait until no request runs, at most `drain_s`; say whether none does."""
        give_up = time.monotonic() + self.drain_s
        if not await self.gate.drained(self.drain_s):
            return False
        # Some requests are answered before they have run: responses "in the background".
        while self.model.num_unfinished():
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _fail(self, reason: str) -> None:
        logger.error("The proof round failed: %s", reason)
        self.stop()
        self._error = reason

    def _require_round(self) -> ServedRound:
        if self._round is None:
            raise NoRound("PoC not initialized")
        return self._round

    def _enter(self, state: PoCState, asked: ServedRound) -> None:
        self.model.check_alive()
        if self._sender is None or self._sender.closing:
            self._sender = self._sender_of(asked)
        self._state, self._error = state, None
        if state is PoCState.GENERATING:
            self._resting.clear()
        else:
            self._resting.set()
        self.gate.close()
        # From when the gate closed: changes of phase do not keep it closed for longer.
        if self._end is None:
            reason = f"nobody stopped the round within {self.max_round_s:.0f} s"
            self._end = asyncio.get_running_loop().call_later(self.max_round_s, self._fail, reason)

    def _leave(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self.gate.open()

    def _end_search(self) -> None:
        if self._search is not None:
            self._search.cancel()
            self._search = None
        self.found.stats.stop()

    def _sender_of(self, asked: ServedRound) -> CallbackQueue | None:
        if asked.callback_url is None:
            return None
        return self.make_sender(asked, asked.callback_url)

    def _retire_sender(self) -> None:
        """Let the sender deliver what waits, and close."""
        if self._sender is not None:
            self._leaving.see_off(self._sender)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)  # or the loop alone would hold it, weakly
        task.add_done_callback(self._tasks.discard)
        return task
