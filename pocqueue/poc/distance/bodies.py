"""The body in which somebody's proof comes in over HTTP, to be recomputed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pocqueue.poc.fields import Text
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.poc.search import MAX_NODE_COUNT, BlockHeight

#: Nonces of one request. A round of 330 seconds finds fewer valid ones.
MAX_NONCES = 100_000

#: A search and what it found, for the examples of documents.
SEARCH_EXAMPLE: dict[str, Any] = {
    "block_hash": "0x3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
    "block_height": 1458,
    "public_key": "gonka1qy352euf40x77qfrg4ncn27dauqjx3t83x4umm",
    "node_id": 0,
    "node_count": 1,
    "batch_size": 100,
    "r_target": 1.4013564660458173,
    "fraud_threshold": 1e-7,
}
BATCH_EXAMPLE: dict[str, Any] = {
    **{name: SEARCH_EXAMPLE[name] for name in ("public_key", "block_hash", "block_height")},
    **{"nonces": [3, 17], "dist": [1.3801, 1.3994], "node_id": 0},
}

Nonce = Annotated[int, Field(ge=0, le=MAX_NONCE)]


class ProofBody(BaseModel):
    """Somebody's proof, to be recomputed for the block of the round at hand; see `Distance.read`."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH_EXAMPLE]})

    public_key: Text
    block_hash: Text
    block_height: BlockHeight
    nonces: list[Nonce] = Field(max_length=MAX_NONCES)
    #: Claimed distances, one a nonce.
    dist: list[float] = Field(max_length=MAX_NONCES)
    node_id: int = Field(default=0, ge=0, le=MAX_NODE_COUNT)
