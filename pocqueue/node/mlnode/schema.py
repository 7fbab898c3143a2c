"""Bodies and answers of the MLNode's artifact routes. What a served vLLM reads as well is in `poc/artifact/bodies.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from pocqueue.errors import InvalidRound
from pocqueue.node.round import NodeRound
from pocqueue.poc.artifact.bodies import GenerateBody, GenerateRoundBody, ReceivedArtifact
from pocqueue.poc.search import ANY_BATCH_SIZE
from pocqueue.web.errors import error_answers
from pocqueue.web.schema import example

#: What there is to work with, where there is nothing; in the network's words.
NO_BACKENDS = "No vLLM backends available"

SEARCH_EXAMPLE: dict[str, Any] = {
    "block_hash": "9F2C6E0B7A41D3589F2C6E0B7A41D3589F2C6E0B7A41D3589F2C6E0B7A41D358",
    "block_height": 4_141_179,
    "public_key": "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
    "node_id": 1,
    "node_count": 3,
    "params": {"model": "embedded", "seq_len": 1024},
    "url": "http://127.0.0.1:9100/v2/poc-batches/embedded",
}


class RoundBody(GenerateRoundBody):
    """``init/generate``: search until stopped, with all that this node works with."""

    model_config = example(**SEARCH_EXAMPLE)

    # Fields of the body of one vLLM server; here they are unknown, and so ignored.
    group_id: Any = Field(default=None, exclude=True)
    n_groups: Any = Field(default=None, exclude=True)

    def to_round(self, default_url: str | None) -> NodeRound:
        """Return the round.

        Args:
            default_url: callback URL of the settings.

        Raises:
            InvalidRound: the body has no URL, and there is no other.
        """
        url = self.url or default_url
        if url is None:
            raise InvalidRound(
                "url",
                None,
                "the http:// or https:// URL that artifacts go to, here or in POCQUEUE_NODE_CALLBACK_URL",
            )
        return NodeRound(
            **self.model_dump(include={"block_hash", "block_height", "public_key"}),
            **self.model_dump(include={"node_id", "node_count"}),
            batch_size=self.batch_size or ANY_BATCH_SIZE,
            seq_len=self.params.seq_len,
            proof=self.proof(),
            params={"model": self.params.model},
            url=url,
        )


class JobBody(GenerateBody):
    """``generate``: compute these nonces, or validate claims of them."""

    model_config = example(
        **SEARCH_EXAMPLE,
        nonces=[1, 4],
        validation={
            "artifacts": [
                {"nonce": 1, "vector_b64": "HiQtKSuuwS8+LuCzwzhzNnQ1+jW/NR2q"},
                {"nonce": 4, "vector_b64": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA8"},
            ]
        },
        stat_test={"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.05},
    )


class JobAnswer(BaseModel):
    """How a request for given nonces stands. Fields that do not apply are left out."""

    model_config = example(
        status="queued", request_id="8080:5b7a4a52-9d0e-4b57-9f83-2f4f4f2c1f0e", queued_count=200
    )

    status: str = Field(description="queued, running, completed or failed.")
    request_id: str = Field(description="The port of this node, a colon and a UUID.")
    queued_count: int | None = Field(default=None, description="Nonces that are asked for.")
    error: str | None = Field(default=None, description="Why it failed.")
    artifacts: list[ReceivedArtifact] | None = Field(default=None, description="What was computed.")
    encoding: dict[str, Any] | None = Field(default=None, description="How vectors are written.")
    n_total: int | None = Field(default=None, description="Claims that were checked.")
    n_mismatch: int | None = Field(default=None, description="Of these, those that are wrong.")
    mismatch_nonces: list[int] | None = None
    p_value: float | None = Field(
        default=None, description="Chance of an honest node to have that many, or more."
    )
    fraud_detected: bool | None = Field(
        default=None, description="Whether that is below the threshold."
    )


class BackendResult(BaseModel):
    """What became of a request at one backend; this node is one, by the port that it listens on."""

    port: int
    status: str


class BackendError(BaseModel):
    """Why a backend did not do what was asked for."""

    port: int
    error: str


class StartAnswer(BaseModel):
    """A round runs."""

    model_config = example(
        status="OK",
        backends=1,
        n_groups=1,
        results=[{"port": 8080, "status": "OK"}],
        errors=None,
    )

    status: str = "OK"
    backends: int = 1
    n_groups: int = 1
    results: list[BackendResult]
    errors: list[BackendError] | None = None


class Failures(BaseModel):
    """No backend did what was asked for."""

    errors: list[BackendError]


class FailedAnswer(BaseModel):
    """The detail of a 502."""

    model_config = example(
        detail={"errors": [{"port": 8080, "error": "Model conflict: asked for 'other'; …"}]}
    )

    detail: Failures


class StopAnswer(BaseModel):
    """Nothing runs any more."""

    model_config = example(status="OK", results=[{"port": 8080, "status": "stopped"}], errors=None)

    status: str = "OK"
    results: list[BackendResult] | None = None
    errors: list[BackendError] | None = None
    message: str | None = Field(
        default=None, description="In place of the other two: `No backends to stop`."
    )


class BackendStatus(BaseModel):
    """How a backend stands, in the words of a vLLM server's own status."""

    port: int
    status: str = Field(description="GENERATING or IDLE.")
    config: dict[str, Any] | None = Field(default=None, description="What is searched.")
    stats: dict[str, Any] | None = Field(
        default=None, description="`total_processed` nonces, `nonces_per_second` since the start."
    )
    gpu_count: int = Field(default=0, description="GPUs that search.")
    error: str | None = Field(default=None, description="What is wrong, in one sentence.")


class StatusAnswer(BaseModel):
    """How this node stands with artifacts."""

    model_config = example(
        status="GENERATING",
        backends=[
            {
                "port": 8080,
                "status": "GENERATING",
                "config": {"block_hash": "9F2C…", "node_id": 1, "node_count": 3, "k_dim": 12},
                "stats": {"total_processed": 18_432, "nonces_per_second": 1_493.2},
                "gpu_count": 30,
                "error": None,
            }
        ],
    )

    status: str = Field(description="GENERATING, IDLE or NO_BACKENDS.")
    backends: list[BackendStatus]


_ERRORS = {
    400: (
        "What is asked for cannot be: claims of other nonces, or no name of a request.",
        "validation.artifacts nonces must match nonces field",
    ),
    404: ("No such request, or it ended more than five minutes ago.", "Request not found"),
    409: (
        "Another model is asked for than the deployed one; names both.",
        "Model conflict: asked for 'other'; deployed is embedded …",
    ),
    413: ("The body is too large.", "The body is larger than 16777216 bytes."),
    422: (
        "A field has a value that is not allowed.",
        "params.k_dim is 65; allowed: an integer from 1 to 64.",
    ),
    429: ("Too many nonces wait.", "Queue full: 99900 nonces queued, limit is 100000"),
    500: ("It was waited for, and the engine failed.", "The engine failed: CUDA out of memory"),
    503: ("There is nothing to work with now, or it took too long.", NO_BACKENDS),
}
#: Error answers for the OpenAPI document, by status.
errors = partial(error_answers, _ERRORS)
