"""A proof round on a served model: one manager, the gate before inference, and the search loop.

Promises:
- GENERATING and VALIDATING close the gate; every way out of them opens it: a stop, a failure, the end
  of `max_round_s`, a client that never comes back.
- Requests that run when a round begins are let finish, for `drain_s` at most; then the round begins
  beside them, batch by batch.
- A stop is answered at once. The batch at hand cannot be interrupted; its result is thrown away.
- What goes wrong in the engine ends the round as failed, with the reason in the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from pocqueue.errors import EngineError, InvalidRound, PocqueueError
from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.data import ProofBatch, ValidatedBatch
from pocqueue.poc.manager import PoCManager
from pocqueue.served.gate import InferenceGate
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


class PowService:
    """Runs proof rounds on a served model. Used from its event loop only.

    Args:
        model: the served model.
        gate: before the inference routes.
        drain_s: seconds that running requests get to finish before the first batch.
        max_round_s: seconds after which a round ends that nobody stopped.
    """

    def __init__(
        self, model: ServedModel, gate: InferenceGate, *, drain_s: float, max_round_s: float
    ) -> None:
        self.model = model
        self.gate = gate
        self._manager = PoCManager(None, model.info, source=model)
        self._drain_s = drain_s
        self._max_round_s = max_round_s
        self._end: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def status(self) -> dict[str, Any]:
        """Return how the round stands; see `PoCManager.get_status`."""
        return self._manager.get_status()

    def init(self, config: PoCConfig) -> None:
        """Set up a round. One that validates is over with this.

        Raises:
            RoundRunning: one is being searched.
            InvalidRound: the model cannot run it. Nothing changes.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        self.model.check(config.batch_size, config.seq_len)
        if self._manager.state is PoCState.GENERATING:
            raise RoundRunning("Round already in progress. POST /api/v1/pow/stop ends it.")
        self.model.check_alive()
        self._manager.init_round(config)
        self._leave()

    def generate(self) -> None:
        """Close the gate and search, from where the round stands; in the background.

        Raises:
            NoRound: there is no round.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        self._require_round()
        if self._manager.state is PoCState.GENERATING:
            return
        self.model.check_alive()
        self._manager.start_generate()
        self._enter()
        self._manager.set_generation_task(self._spawn(self._search(), "poc-generate"))

    def validate(self) -> None:
        """Close the gate and stop searching; proofs are checked as they come.

        Raises:
            NoRound: there is no round.
            EngineUnavailable: the engine is dead. Nothing changes.
        """
        self._require_round()
        self.model.check_alive()
        self._manager.start_validate()
        self._enter()

    def stop(self) -> None:
        """End the round, if any, and open the gate."""
        self._manager.stop_round()
        self._leave()

    async def check(self, proof: ProofBatch) -> ValidatedBatch:
        """Recompute a proof for the round's block.

        Raises:
            NoRound: there is no round, or it ended meanwhile.
            InvalidRound: the proof is none.
            EngineError: the engine failed; so did the round, if it was searching or validating.
        """
        config = self._manager.config
        if config is None:
            raise NoRound("No round configured")
        try:
            return await self._manager.check_proof(proof)
        except InvalidRound:
            raise
        except RuntimeError as exc:
            raise NoRound(f"{exc}.") from None
        except EngineError as exc:
            # Not a round that began meanwhile.
            if self._manager.config is config and self._manager.state in _BUSY:
                self._fail(str(exc))
            raise

    async def close(self) -> None:
        """End everything and deliver the callbacks that wait, for a bounded time."""
        self.stop()
        await self._manager.close()
        await self.model.close()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _search(self) -> None:
        """Search until the state changes. The manager cancels this where the round ends."""
        try:
            if not await self._drained():
                logger.warning(
                    "%d requests still run after %.0f s; the proof round begins beside them.",
                    max(self.gate.running, self.model.num_unfinished()),
                    self._drain_s,
                )
            while self._manager.state is PoCState.GENERATING:
                await self._manager.run_batch_async()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the round must not seem to go on
            self._fail(str(exc) or type(exc).__name__)

    async def _drained(self) -> bool:
        """Wait until no request runs, at most `drain_s`; say whether none does."""
        give_up = time.monotonic() + self._drain_s
        if not await self.gate.drained(self._drain_s):
            return False
        # Some requests are answered before they have run: responses "in the background".
        while self.model.num_unfinished():
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _fail(self, reason: str) -> None:
        logger.error("The proof round failed: %s", reason)
        self._manager.fail_round(reason)
        self._leave()

    def _enter(self) -> None:
        self.gate.close()
        # From when the gate closed: changes of phase do not keep it closed for longer.
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(self._max_round_s, self._overdue)

    def _leave(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self.gate.open()

    def _overdue(self) -> None:
        self._fail(f"nobody stopped the round within {self._max_round_s:.0f} s")

    def _require_round(self) -> None:
        if self._manager.config is None:
            raise NoRound("PoC not initialized")

    def _spawn(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)  # or the loop alone would hold it, weakly
        task.add_done_callback(self._tasks.discard)
        return task
