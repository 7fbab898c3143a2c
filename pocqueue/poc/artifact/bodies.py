"""Bodies of the network's artifact routes and callbacks, whichever service answers or sends them; docs/wire.md.

Unknown fields are ignored but for those of `params`: a decode request must fail loudly, as it would be answered
with something else. A field that is null is one that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pocqueue.poc.artifact.data import names
from pocqueue.poc.artifact.refusals import refuse_decode
from pocqueue.poc.artifact.scheme import (
    Artifact,
    DistThreshold,
    GroupId,
    KDim,
    NumGroups,
    PMismatch,
)
from pocqueue.poc.fields import Allowed, HttpUrl, Text, build
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import FraudThreshold, ProofSearch
from pocqueue.poc.search import BatchSize, SearchBody, SeqLen

Nonce = Annotated[
    int,
    Field(ge=0, le=Artifact.max_nonce),
    Allowed(f"a whole number from 0 to {Artifact.max_nonce}"),
]


def _without_nulls(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in fields.items() if value is not None}


class Params(BaseModel):
    """The model, and the size of what is asked of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text
    seq_len: SeqLen
    k_dim: KDim = 12

    @model_validator(mode="before")
    @classmethod
    def _is_prefill(cls, fields: Any) -> Any:
        return refuse_decode(fields, "params.")


class _Request(SearchBody):
    """What both requests have."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    params: Params
    batch_size: BatchSize | None = None  # type: ignore[assignment]  # None: as the service likes
    url: HttpUrl | None = None
    poc_stronger_rng: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, fields: Any) -> Any:
        return refuse_decode(_without_nulls(fields))

    @field_validator("url", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    def proof(self, **parameters: Any) -> Artifact:
        """Return the parameters of the proof that is asked for.

        Raises:
            InvalidRound: one is out of bounds.
        """
        own = {"k_dim": self.params.k_dim, "stronger_rng": self.poc_stronger_rng}
        return build(Artifact, own | parameters)

    def search(self, proof: Artifact, batch_size: int) -> ProofSearch:
        """Return what is asked for as a search.

        Args:
            proof: its parameters.
            batch_size: nonces of a pass if the body does not say.
        """
        return ProofSearch(
            block_hash=self.block_hash,
            block_height=self.block_height,
            public_key=self.public_key,
            node_id=self.node_id,
            node_count=self.node_count,
            batch_size=self.batch_size or batch_size,
            seq_len=self.params.seq_len,
            proof=proof,
        )


class GenerateRoundBody(_Request):
    """``init/generate``: search until stopped."""

    group_id: GroupId = 0
    n_groups: NumGroups = 1

    def round_search(self, batch_size: int) -> ProofSearch:
        """Return the round as a search; see `search`.

        Raises:
            InvalidRound: there is no such group.
        """
        proof = self.proof(group_id=self.group_id, n_groups=self.n_groups)
        return self.search(proof, batch_size)


class ReceivedArtifact(BaseModel):
    """An artifact that somebody claims."""

    nonce: Nonce
    vector_b64: str  #: any text or null, as one that is no vector is a mismatch

    @model_validator(mode="before")
    @classmethod
    def _is_prefill(cls, fields: Any) -> Any:
        return refuse_decode(fields, "validation.artifacts.")

    @field_validator("vector_b64", mode="before")
    @classmethod
    def _is_kept_as_text(cls, value: object) -> object:
        # Half a surrogate pair is no vector, and could not be written to disk.
        is_broken = isinstance(value, str) and not value.isascii()
        return "" if value is None or is_broken else value


class Claims(BaseModel):
    """What is to be validated."""

    artifacts: list[ReceivedArtifact]


class StatTest(BaseModel):
    """By which bounds claims are judged; the network's chain has another name for the last one."""

    dist_threshold: DistThreshold = 0.02
    p_mismatch: PMismatch = 0.001
    fraud_threshold: FraudThreshold = 0.01

    @model_validator(mode="before")
    @classmethod
    def _also_called(cls, fields: Any) -> Any:
        fields = _without_nulls(fields)
        if isinstance(fields, dict) and "p_value_threshold" in fields:
            return {"fraud_threshold": fields["p_value_threshold"]} | fields
        return fields


class GenerateBody(_Request):
    """``generate``: compute these nonces, or validate claims of them."""

    nonces: list[Nonce]
    wait: bool = False
    validation: Claims | None = None
    stat_test: StatTest = Field(default_factory=StatTest)


def validated_body(search: SearchBody, request_id: str, verdict: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a POST to ``{url}/validated``; the verdict is one of `verdict_on`."""
    return {"request_id": request_id, **names(search), **verdict}


def verdict_on(
    proof: Artifact, claims: Sequence[ReceivedArtifact], computed: dict[int, str]
) -> dict[str, Any]:
    """Judge claims by the bounds of a proof.

    Args:
        proof: its ``dist_threshold``, ``p_mismatch`` and ``fraud_threshold`` count.
        claims: a claim that cannot be read, or has not k_dim finite numbers, is a mismatch. A nonce counts once however
            often it is claimed; one with two different vectors is a mismatch.
        computed: our artifact of each nonce; a nonce that has none, as we could not compute it, does not count.
    """
    claimed: dict[int, set[str]] = {}
    for claim in claims:
        if claim.nonce in computed:
            claimed.setdefault(claim.nonce, set()).add(claim.vector_b64)
    proofs = Proofs.of(
        (nonce, "".join(texts) * (len(texts) == 1)) for nonce, texts in claimed.items()
    )
    verdict = proof.judge(proofs, [computed[nonce] for nonce in claimed])
    return {
        "n_total": len(claimed),
        "n_mismatch": verdict.n_invalid,
        "mismatch_nonces": verdict.invalid,
        "p_value": verdict.probability_honest,
        "fraud_detected": verdict.fraud_detected,
    }
