"""What an MLNode does for the chain with artifacts, by one backend: whatever this node works with.

An MLNode hands a round to each of its vLLM servers. Here there is one, by the port of this node, however many GPUs
are behind it: one group, and so one round.

- The same round again while it is searched changes nothing and is answered as the first time. The public proxy would
  answer 502 with its backend's `Already generating`; the chain's node asks for the status first, and repeats itself
  only if an answer was lost or is still to come: it is to hear that the round runs.
- Another round ends the one at hand, as on this node's other routes. The public one would be refused until somebody
  stops the old one, whose artifacts no chain takes any more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from pocqueue.errors import NodeStateError, OutboxError, PocqueueError
from pocqueue.node.follower import Follower
from pocqueue.node.mlnode.schema import (
    NO_BACKENDS,
    BackendError,
    BackendResult,
    BackendStatus,
    Failures,
    RoundBody,
    StartAnswer,
    StatusAnswer,
    StopAnswer,
)
from pocqueue.node.service import NodeService
from pocqueue.poc.artifact.bodies import GenerateBody
from pocqueue.poc.artifact.data import names
from pocqueue.poc.artifact.jobs import JobState
from pocqueue.poc.artifact.refusals import UnknownRequest
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.settings import NodeSettings

logger = logging.getLogger(__name__)

#: Seconds after which a round ends that the chain does not end. The network's stage takes 190 of them; what is found
#: after it is worth nothing, and takes room in Redis and on disk.
WINDOW_S = 1200.0


class NoBackends(PocqueueError, LookupError):
    """There is nothing to work with now, in the network's words."""

    http_status = 503

    def __init__(self) -> None:
        super().__init__(NO_BACKENDS)


class BackendsFailed(PocqueueError):
    """No backend did what was asked for.

    Attributes:
        errors: what each said.
    """

    http_status = 502

    def __init__(self, errors: Sequence[BackendError]) -> None:
        self.errors = errors
        super().__init__("; ".join(one.error for one in errors))

    @property
    @override
    def detail(self) -> dict[str, Any]:
        return Failures(errors=list(self.errors)).model_dump()


class InvalidRequestId(PocqueueError, ValueError):
    """A request is asked for by what cannot be its name."""

    http_status = 400


class RequestNotFound(PocqueueError, LookupError):
    """No request has this name, or its result is not kept any more."""

    http_status = 404

    def __init__(self) -> None:
        super().__init__("Request not found")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An MLNode, over the state of a small node."""

    service: NodeService
    settings: NodeSettings

    async def start(self, body: RoundBody) -> StartAnswer:
        """Search a round of artifacts.

        Raises:
            InvalidRound: the body has no URL, and there is no other.
            NoBackends, BackendsFailed: see the classes.
        """
        node_round = body.to_round(self.settings.callback_url)
        if not await self.service.has_gpus():
            raise NoBackends
        try:
            await self.service.hurry(node_round.url)
            await self.service.generate(node_round, WINDOW_S)
        except PocqueueError as exc:
            # Its caller reads the status alone.
            logger.warning("A round of artifacts is not begun: %s", exc)
            if is_absence(exc):
                raise NoBackends from exc
            failed = BackendError(port=self.settings.port, error=str(exc))
            raise BackendsFailed([failed]) from exc
        return StartAnswer(results=[self._result("OK")])

    async def status(self) -> StatusAnswer:
        """Say how this node stands with artifacts; a round of distances is none of these routes' business."""
        found = self.service.current
        if found is not None and found.is_searching and found.round.scheme == Artifact.name:
            return StatusAnswer(status="GENERATING", backends=[self._searching(found)])
        if not await self.service.has_gpus():
            return StatusAnswer(status="NO_BACKENDS", backends=[])
        idle = BackendStatus(port=self.settings.port, status="IDLE")
        return StatusAnswer(status="IDLE", backends=[idle])

    async def stop(self) -> StopAnswer:
        """End the round and all jobs; what was found is still sent."""
        had = await self.service.stop_all()
        if not had and not await self.service.has_gpus():
            return StopAnswer(status="OK", message="No backends to stop")
        return StopAnswer(status="OK", results=[self._result("stopped")], errors=None)

    async def generate(self, body: GenerateBody) -> dict[str, Any]:
        """Compute given nonces, or validate claims of them: ahead of a round, if one is searched on the same pool.

        Returns:
            The result if it is waited for; else under which name it can be asked for.

        Raises:
            NoBackends: see the class.
            RequestFailed: it was waited for, and failed or took too long.
            PocqueueError: as `Jobs.take` does.
        """
        jobs = self.service.jobs
        try:
            job = await jobs.take(body)
        except PocqueueError as exc:
            if is_absence(exc) or isinstance(exc, NodeStateError):
                logger.warning("A request for given nonces is not taken: %s", exc)
                raise NoBackends from exc
            raise
        if body.wait:
            return self._named(await jobs.queue.result(job))
        queued = {"status": JobState.QUEUED.value, "request_id": job.request_id}
        return self._named(queued) | {"queued_count": len(body.nonces)}

    def result(self, request_id: str) -> dict[str, Any]:
        """Return how a request stands, with its result.

        Raises:
            InvalidRequestId: it is no name of a request.
            RequestNotFound: there is none of that name, or it ended too long ago.
        """
        port, colon, own_id = request_id.partition(":")
        if not colon:
            raise InvalidRequestId("Invalid request_id format (expected port:uuid)")
        if not (port.isascii() and port.isdigit()):
            raise InvalidRequestId("Invalid port in request_id")
        if port != str(self.settings.port):
            raise RequestNotFound
        try:
            return self._named(self.service.jobs.queue.find(own_id).answer())
        except UnknownRequest:
            raise RequestNotFound from None

    def _named(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Put the port before the id of a request, as an MLNode does."""
        return answer | {"request_id": f"{self.settings.port}:{answer['request_id']}"}

    def _result(self, status: str) -> BackendResult:
        return BackendResult(port=self.settings.port, status=status)

    def _searching(self, found: Follower) -> BackendStatus:
        searched, request = found.round, found.request
        assert isinstance(searched.proof, Artifact)
        elapsed_s = max(request.window_s - request.left_s, 1e-3)
        return BackendStatus(
            port=self.settings.port,
            status="GENERATING",
            config={
                **names(searched),
                "node_count": searched.node_count,
                "group_id": 0,
                "n_groups": 1,
                "seq_len": searched.seq_len,
                "k_dim": searched.proof.k_dim,
            },
            stats={
                "total_processed": found.nonces,
                "nonces_per_second": round(found.nonces / elapsed_s, 3),
            },
            gpu_count=found.source.gpu_count,
            error=found.error,
        )


def is_absence(exc: PocqueueError) -> bool:
    """Say whether an error means that there is nothing to work with now."""
    return exc.http_status == 503 and not isinstance(exc, OutboxError)
