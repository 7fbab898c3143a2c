"""Bodies of the proof routes that a vLLM server answers; docs/wire.md.

Bounds are those of a round (`poc/search.py`); what depends on the model is checked by the service.
Unknown fields are ignored: clients of several generations send more than this one needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidatorFunctionWrapHandler, WrapValidator
from typing_extensions import override

from pocqueue.poc.artifact.bodies import GenerateRoundBody, ReceivedArtifact
from pocqueue.poc.batch import Batch
from pocqueue.poc.distance.scheme import SEARCH_EXAMPLE, Nonce, RTarget
from pocqueue.poc.fields import HttpUrl, Text
from pocqueue.poc.scheme import FraudThreshold, WithProof
from pocqueue.poc.search import (
    MAX_BATCH_SIZE,
    BatchSize,
    MaybeNodeCount,
    MaybeNodeId,
    Search,
    SeqLen,
)
from pocqueue.web.errors import error_answers
from pocqueue.web.schema import example


class ServedRoundBody(Search):
    """A round as its starter describes it."""

    model_config = example(**SEARCH_EXAMPLE, callback_url="http://10.0.0.5:9100/v1/poc-batches")

    #: Missing is answered apart, as it always was.
    r_target: RTarget | None = None
    fraud_threshold: FraudThreshold = 0.01
    node_id: MaybeNodeId = 0
    node_count: MaybeNodeCount = 1
    callback_url: HttpUrl | None = None


def _by_target(
    value: Any, _union: ValidatorFunctionWrapHandler
) -> ServedRoundBody | GenerateRoundBody:
    is_distance = isinstance(value, dict) and "r_target" in value
    return (ServedRoundBody if is_distance else GenerateRoundBody).model_validate(value)


#: A round of either proof: one of distances has an r_target, if only null.
AnyRoundBody = Annotated[ServedRoundBody | GenerateRoundBody, WrapValidator(_by_target)]


class BatchBody(BaseModel):
    """Nonces for one pass of the shape [batch_size, seq_len]."""

    block_hash: Text
    public_key: Text
    nonces: list[Nonce] = Field(max_length=MAX_BATCH_SIZE)
    batch_size: BatchSize
    seq_len: SeqLen

    def to_batch(self) -> Batch:
        """Return the same as the engines have it."""
        return Batch(**self.model_dump(include=set(BatchBody.model_fields)))


class DistancesBody(BatchBody):
    """Nonces whose distances are wanted."""

    #: What will be asked for next, so that its inputs are made meanwhile; computed only when asked for.
    upcoming: BatchBody | None = None


class ProofBatchBody(BatchBody, WithProof):
    """The same, and what is computed of them: `scheme`, and what of its parameters that depends on, flat."""

    @override
    def to_batch(self) -> Batch:
        return replace(super().to_batch(), scheme=self.proof.name, options=self.proof.options)


class ValuesBody(ProofBatchBody):
    """Nonces whose values are wanted."""

    upcoming: ProofBatchBody | None = None  #: as in `DistancesBody`


class ServedStatus(BaseModel):
    """How a round stands; see `Prover.status`."""

    state: str
    #: All of the round, in the order found, or those from `valid_from` on.
    valid_nonces: list[int]
    valid_distances: list[float]
    #: How many were found before the first of these: what was asked for as `since`.
    valid_from: int
    total_checked: int
    total_valid: int
    elapsed_seconds: float
    rate_per_second: float
    #: Of those checked, distances that were NaN or infinite; dropped.
    total_nonfinite: int
    #: Whether the round ended because the engine could not go on; then the state is STOPPED.
    failed: bool
    #: Why.
    error: str | None
    #: Valid nonces, and nonces of verdicts, that the callback URL has not taken yet.
    callbacks_waiting: int
    #: Those that it refused, or did not take in time.
    callbacks_dropped: int
    #: Why the last callback failed; null: it did not.
    callbacks_error: str | None


class ServedStatusAnswer(ServedStatus):
    """How a round stands, and what else the server does."""

    #: Inference requests that still run; a round waits for them, for a bounded time.
    running_requests: int


class ServedRoundAnswer(BaseModel):
    """What changed a round is answered with."""

    status: str = "OK"
    pow_status: ServedStatus
    #: What of the body is taken another way than it was asked for.
    warnings: list[str] = []


class VerdictAnswer(BaseModel):
    """What a proof is worth."""

    status: str = "OK"
    fraud_detected: bool
    #: One distance a nonce; null: it is not finite.
    computed_distances: list[float | None]
    n_invalid: int
    probability_honest: float


class ConfigAnswer(BaseModel):
    """A round of artifacts."""

    block_hash: str
    block_height: int
    public_key: str
    node_id: int
    node_count: int
    group_id: int
    n_groups: int
    seq_len: int
    k_dim: int


class StatsAnswer(BaseModel):
    """How far a round of artifacts is."""

    total_processed: int
    nonces_per_second: float


class ArtifactStatus(BaseModel):
    """How a round of artifacts stands, in the network's words."""

    status: str  #: GENERATING or IDLE
    config: ConfigAnswer | None  #: null: IDLE
    stats: StatsAnswer | None  #: null: IDLE


class ArtifactStatusAnswer(ArtifactStatus):
    """The same, and what `ServedStatusAnswer` has of it."""

    failed: bool
    error: str | None
    callbacks_waiting: int
    callbacks_dropped: int
    callbacks_error: str | None
    running_requests: int


class StateAnswer(BaseModel):
    """What the routes of a round of artifacts have made of it."""

    status: str = "OK"
    pow_status: dict[str, str]  #: `status`: GENERATING or STOPPED


class JobAnswer(BaseModel):
    """How a request for artifacts stands."""

    status: str  #: queued, running, completed or failed
    request_id: str
    queued_count: int | None = None  #: nonces that were taken for later
    artifacts: list[ReceivedArtifact] | None = None
    encoding: dict[str, Any] | None = None
    # Of a validation
    n_total: int | None = None
    n_mismatch: int | None = None
    mismatch_nonces: list[int] | None = None
    p_value: float | None = None
    fraud_detected: bool | None = None
    error: str | None = None  #: why it failed


class VersionsAnswer(BaseModel):
    """What runs here."""

    vllm_version: str | None  #: null: it is not vLLM that serves
    gonka_poc_version: str
    poc_validation_inference: bool  #: whether requests are served while artifacts are validated


class ValuesAnswer(BaseModel):
    """Values of another proof scheme than distances, and of which model."""

    values: list[Any]  #: one a nonce; null: there is none
    fingerprint: str
    dtype: str


class DistancesAnswer(BaseModel):
    """Distances, and of which model."""

    #: One distance a nonce; null: it is not finite.
    distances: list[float | None]
    fingerprint: str
    dtype: str


_ERRORS = {
    400: ("There is no round, or a part of it is missing.", "PoC not initialized"),
    401: (
        "The token is missing or wrong.",
        "Invalid auth token; send it as `Authorization: Bearer TOKEN`.",
    ),
    409: (
        "A round is being searched; stop it first. Or another model is deployed: then `detail` is an object.",
        "Round already in progress. POST /api/v1/pow/stop ends it.",
    ),
    422: (
        "A field has a value that is not allowed.",
        "r_target is -1.0; allowed: a number above 0.",
    ),
    429: (
        "Too many wrong tokens came from this address, or too many nonces wait.",
        "Too many wrong tokens from this address; try again in 42 s.",
    ),
    500: ("The engine failed on a batch; says why.", "The engine failed: CUDA out of memory"),
    507: (
        "The batch does not fit into the memory of the server's device.",
        "A batch of 1024 x 4096 tokens does not fit into the memory of cuda:0 beside model m. …",
    ),
    503: (
        "The engine cannot be used; the sentence says why.",
        "Engine not available: the server is still starting.",
    ),
}
#: Error answers of every route, for the OpenAPI document.
ERRORS = error_answers(_ERRORS, *_ERRORS)
