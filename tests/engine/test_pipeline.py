"""The steps around a forward pass: shapes, schemes, and what is prefetched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from pocqueue.engine.pipeline import Pipeline
from pocqueue.errors import InvalidRound, PassTooLarge
from pocqueue.poc.artifact import pseudo_input_ids
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels.reference import ReferenceKernels
from pocqueue.poc.maths import AfterLayer, Output, TokenIds
from tests.support.factories import make_info
from tests.support.vectors import Vectors

CPU = torch.device("cpu")
HIDDEN, VOCAB = 16, 40


class Model:
    """A model that adds up its embeddings; notes what it was asked for.

    Args:
        asks_for_ids: as one does that routes by token ids.
    """

    def __init__(self, *, asks_for_ids: bool = False) -> None:
        self.asks_for_ids = asks_for_ids
        self.ids: list[torch.Tensor | None] = []
        self.shapes: list[tuple[int, ...]] = []
        self.outputs: list[Output] = []

    def __call__(
        self,
        inputs: torch.Tensor,
        output: Output,
        _after_layer: AfterLayer | None,
        token_ids: TokenIds,
    ) -> torch.Tensor:
        if self.asks_for_ids:
            self.ids.append(token_ids())
        self.shapes.append(tuple(inputs.shape))
        self.outputs.append(output)
        hidden = inputs.sum(dim=1)
        return hidden if output == "hidden" else hidden.repeat(1, 3)[:, :VOCAB]


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    info = make_info(hidden_size=HIDDEN, vocab_size=VOCAB, max_seq_len=64)
    pipeline = Pipeline(info, CPU, torch.float32, ReferenceKernels(CPU))
    yield pipeline
    pipeline.close()


def batch_of(*nonces: int, scheme: str = "distance", k_dim: int = 3) -> Batch:
    options = () if scheme == "distance" else (("k_dim", k_dim),)
    return Batch("block", "key", nonces, 4, 5, scheme, options)


def test_a_model_that_asks_for_token_ids_gets_those_of_the_padded_batch(
    pipeline: Pipeline,
) -> None:
    """Of artifacts, which have some; of distances there are none."""
    model = Model(asks_for_ids=True)
    options = (("k_dim", 4), ("stronger_rng", False))
    pipeline.values(Batch("block", "key", (7, 9), 4, 5, "artifact", options), model)
    pipeline.values(batch_of(1), model)
    [ids, none] = model.ids
    assert ids is not None
    assert ids.dtype == torch.int32
    assert torch.equal(ids, pseudo_input_ids("block", "key", [7, 9, 9, 9], 5, VOCAB))
    assert none is None


def test_every_pass_has_the_shape_of_its_round(pipeline: Pipeline) -> None:
    """However few nonces there are; a nonce's distance is the same in any company."""
    model = Model()
    full = pipeline.values(batch_of(1, 2, 3, 4), model)
    assert full is not None
    assert pipeline.values(batch_of(3), model) == full[2:3]
    assert pipeline.values(batch_of(), model) == []
    assert model.shapes == [(4, 5, HIDDEN)] * 2
    assert model.outputs == ["logits"] * 2


def test_a_scheme_says_what_it_reads_and_what_a_value_is(pipeline: Pipeline) -> None:
    """Here a vector for each nonce, of the hidden state, as long as the batch's options say."""
    model = Model()
    found = pipeline.values(batch_of(1, 2, 3, scheme=Vectors.name), model)
    longer = pipeline.values(batch_of(2, scheme=Vectors.name, k_dim=HIDDEN), model)
    assert found is not None
    assert longer is not None
    assert [len(vector) for vector in found] == [3, 3, 3]
    assert longer[0][:3] == found[1]
    assert math.hypot(*longer[0]) == pytest.approx(1)
    assert model.outputs == ["hidden"] * 2
    assert isinstance((pipeline.values(batch_of(1), model) or [None])[0], float)


def test_schemes_may_alternate_with_prefetching(pipeline: Pipeline) -> None:
    """Two rounds of different schemes share a GPU; each batch is prefetched by its own."""
    batches = [batch_of(n, scheme=("distance", Vectors.name)[n % 2]) for n in range(6)]
    alone = [pipeline.values(batch, Model()) for batch in batches]
    told = [
        pipeline.values(batch, Model(), upcoming)
        for batch, upcoming in zip(batches, [*batches[1:], None], strict=True)
    ]
    assert told == alone


def test_a_scheme_that_is_not_known_is_refused_by_name(pipeline: Pipeline) -> None:
    """When it is asked for, not when it is expected."""
    unknown = batch_of(1, scheme="unheard-of")
    assert pipeline.values(batch_of(1), Model(), upcoming=unknown)
    with pytest.raises(InvalidRound, match="unheard-of"):
        pipeline.values(unknown, Model())


def test_a_rank_that_gets_no_logits_has_no_values(pipeline: Pipeline) -> None:
    """As on all but the first of a tensor-parallel group."""
    assert pipeline.values(batch_of(1), lambda *_given: None) is None


def test_a_batch_without_room_is_refused_with_a_sentence(pipeline: Pipeline) -> None:
    """The round asks for too much; the engine goes on with others."""

    def full(*_given: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(PassTooLarge, match="A batch of 4 x 5 tokens does not fit"):
        pipeline.values(batch_of(1), full)
    huge = Batch("block", "key", (1,), 2**40, 5)
    with pytest.raises(PassTooLarge, match="A batch of 1099511627776 x 5 tokens does not fit"):
        pipeline.values(huge, Model())
    assert pipeline.values(batch_of(1), Model())
