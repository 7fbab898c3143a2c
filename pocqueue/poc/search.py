"""What is searched: a block, a key, one node's share of the nonces, and the shape of a forward pass.

Declared here once, with bounds and their words. A round, the small node's round and every HTTP body
that asks for a search are subclasses; they repeat a field only where their wire has another default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pocqueue.poc.fields import Allowed, Text
from pocqueue.poc.nonces import check_node, index_of, nonces_of

MAX_BATCH_SIZE = 4096
DEFAULT_BATCH_SIZE = 32
#: Every nonce of a round has to fit into a signed 64-bit integer on the wire.
MAX_NODE_COUNT = 2**31 - 1
#: Says that nobody asked for a batch size: the default, or less where a pass of the GPUs at hand holds less. As a wish
#: above the limit, older ones of our services take it, too.
ANY_BATCH_SIZE = MAX_NODE_COUNT
MAX_BLOCK_HEIGHT = 2**63 - 1
#: How older clients say that node_id or node_count is not set, where their bodies let them.
NOT_SET = -1

BlockHeight = Annotated[
    int, Field(ge=0, le=MAX_BLOCK_HEIGHT), Allowed("a whole number from 0 to 2^63 - 1")
]
_NODE_ID = Allowed("a whole number from 0 to node_count - 1")
_NODE_COUNT = Allowed(f"a whole number from 1 to {MAX_NODE_COUNT}")
NodeId = Annotated[
    int, Field(ge=0, description="Which of the nodes this is, below node_count."), _NODE_ID
]
NodeCount = Annotated[
    int, Field(ge=1, le=MAX_NODE_COUNT, description="How many share the nonces."), _NODE_COUNT
]
MaybeNodeId = Annotated[
    int, Field(ge=NOT_SET, description="Which of the nodes this is; -1: not set."), _NODE_ID
]
MaybeNodeCount = Annotated[
    int,
    Field(ge=NOT_SET, le=MAX_NODE_COUNT, description="How many share the nonces; -1: not set."),
    _NODE_COUNT,
]
BatchSize = Annotated[
    int,
    Field(ge=1, le=MAX_BATCH_SIZE, description="Nonces of one forward pass."),
    Allowed(f"a whole number from 1 to {MAX_BATCH_SIZE}"),
]
#: Older clients send the same large one whatever GPUs there are: above the limit it is a wish.
WishedBatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_NODE_COUNT,
        description=f"Nonces of one forward pass; more than {MAX_BATCH_SIZE} is cut to what does best.",
    ),
    Allowed("a whole number of at least 1"),
]
SeqLen = Annotated[
    int,
    Field(ge=1, description="Positions of one nonce's input."),
    Allowed("a whole number from 1 to the model's limit"),
]


class SearchBody(BaseModel):
    """A search as it goes over a wire where the sequence length stands elsewhere in the body."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    block_hash: Text = Field(description="Names the block.")
    block_height: BlockHeight
    public_key: Text = Field(description="Whose proof it is: part of what is searched.")
    node_id: NodeId
    node_count: NodeCount
    batch_size: WishedBatchSize = DEFAULT_BATCH_SIZE

    @model_validator(mode="after")
    def _node_id_below_count(self) -> Self:
        if NOT_SET not in (self.node_id, self.node_count):
            check_node(self.node_id, self.node_count)
        return self

    @property
    def pass_size(self) -> int:
        """Nonces of one forward pass where nobody knows what does best."""
        return self.batch_size if self.batch_size <= MAX_BATCH_SIZE else DEFAULT_BATCH_SIZE


class Search(SearchBody):
    """A search, complete: each node of `node_count` searches its own nonces (`poc/nonces.py`)."""

    seq_len: SeqLen = 256

    @property
    def stride(self) -> tuple[int, int]:
        """Whose nonces are searched, and among how many, as `poc/nonces.py` counts."""
        return self.node_id, self.node_count

    def nonces(self, start: int, stop: int) -> Sequence[int]:
        """Return the nonces of the half-open range of indices [start, stop).

        Raises:
            InvalidRound: the range is reversed or leaves 64 bits.
        """
        return nonces_of(start, stop, *self.stride)

    def index_of(self, nonce: int) -> int:
        """Return the index of a nonce.

        Raises:
            InvalidRound: it is none of this search.
        """
        return index_of(nonce, *self.stride)
