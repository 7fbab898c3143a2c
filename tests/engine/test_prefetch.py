"""What is made ahead is what would have been made, in a buffer that the model is not using."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from typing_extensions import override

from pocqueue.engine.prefetch import Prefetch, Prepared, SideStream
from pocqueue.poc.batch import Batch
from pocqueue.poc.distance.maths import DistanceMaths
from pocqueue.poc.kernels import Kernels, kernels_for
from pocqueue.poc.kernels.reference import ReferenceKernels
from pocqueue.poc.seeds import input_seeds, permutation_seeds

CPU = torch.device("cpu")
HIDDEN, VOCAB = 16, 40


class Side(SideStream):
    """Works at once, and checks that its work is behind what the model was given.

    Attributes:
        under_way: work that the model's stream did not wait for yet.
    """

    def __init__(self) -> None:
        self.under_way = False
        self.inside = False
        self._after_fork = False

    @override
    def fork(self) -> None:
        self._after_fork = True

    @override
    @contextmanager
    def working(self) -> Iterator[None]:
        assert self._after_fork
        self._after_fork, self.under_way, self.inside = False, True, True
        yield
        self.inside = False

    @override
    def join(self) -> None:
        self.under_way = False


class CountingKernels(ReferenceKernels):
    """The judge; counts the batches whose inputs it makes on the side, and may run out of memory."""

    def __init__(self, side: Side) -> None:
        super().__init__(CPU)
        self.made = self.made_ahead = 0
        self.full = False
        self._side = side

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        if self.full:
            raise torch.OutOfMemoryError("no room")
        self.made += 1
        self.made_ahead += self._side.inside
        super().write_inputs(seeds, out)


def prefetch_of(
    kernels: Kernels,
    device: torch.device,
    hidden_size: int,
    vocab_size: int,
    side: SideStream | None = None,
) -> Prefetch:
    """Make a prefetch of distances."""
    maths = DistanceMaths(kernels, hidden_size, vocab_size, device)

    def buffer(batch: Batch) -> torch.Tensor:
        return torch.empty(batch.batch_size, batch.seq_len, hidden_size, device=device)

    return Prefetch(lambda _: maths, buffer, side)


def batch_of(*nonces: int, block: str = "block", seq_len: int = 4) -> Batch:
    return Batch(block, "key", nonces, 2, seq_len).padded()


def check(prepared: Prepared, batch: Batch) -> None:
    """Compare inputs and permutations with those made one batch at a time."""
    names = (batch.block_hash, batch.public_key, batch.nonces)
    judge = ReferenceKernels(CPU)
    inputs = torch.empty(len(batch.nonces), batch.seq_len * HIDDEN)
    judge.write_inputs(input_seeds(*names), inputs)
    assert torch.equal(prepared.inputs.view(inputs.shape), inputs)
    target = torch.nn.functional.normalize(torch.arange(1.0, VOCAB + 1), dim=0)
    logits = torch.randn(len(batch.nonces), VOCAB, generator=torch.Generator().manual_seed(0))
    distances = judge.distances(logits, prepared.rest, target)
    permutations = judge.permutations(permutation_seeds(*names), VOCAB)
    permuted = torch.gather(logits, 1, permutations)
    expected = (torch.nn.functional.normalize(permuted, dim=1) - target).norm(dim=1)
    assert distances.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.fixture
def side() -> Side:
    return Side()


@pytest.fixture
def kernels(side: Side) -> CountingKernels:
    return CountingKernels(side)


@pytest.fixture
def ahead(side: Side, kernels: CountingKernels) -> Iterator[Prefetch]:
    """One that makes batches ahead, as on a GPU."""
    made = prefetch_of(kernels, CPU, HIDDEN, VOCAB, side)
    yield made
    made.close()


def test_batches_made_when_they_are_wanted() -> None:
    """On the CPU: one buffer, expected or not."""
    prefetch = prefetch_of(ReferenceKernels(CPU), CPU, HIDDEN, VOCAB)
    first, second = batch_of(1, 2), batch_of(3)
    one = prefetch.get(first)
    check(one, first)
    prefetch.expect(second)
    prefetch.make_expected()
    check(one, first)  # still the model's
    two = prefetch.get(second)
    check(two, second)
    assert two.inputs.data_ptr() == one.inputs.data_ptr()
    prefetch.close()


def test_the_expected_batch_is_made_beside_the_present_one(
    ahead: Prefetch, side: Side, kernels: CountingKernels
) -> None:
    """In the other buffer, behind the fork; the model waits for it before it is handed over."""
    batches = [batch_of(1, 2), batch_of(3, 4), batch_of(5, 6)]
    present = ahead.get(batches[0])
    for following in batches[1:]:
        before = present.inputs.clone()
        ahead.expect(following)
        ahead.make_expected()
        assert torch.equal(present.inputs, before)
        assert side.under_way
        taken = ahead.get(following)
        assert not side.under_way
        check(taken, following)
        assert taken.inputs.data_ptr() != present.inputs.data_ptr()
        present = taken
    assert (kernels.made, kernels.made_ahead) == (3, 2)


def test_another_batch_than_the_expected_one_is_made_anew(ahead: Prefetch, side: Side) -> None:
    """What was made ahead is waited for before its memory is used again."""
    ahead.get(batch_of(1, 2))
    ahead.expect(batch_of(3, 4))
    ahead.make_expected()
    other = batch_of(3, 4, block="another", seq_len=6)
    check(ahead.get(other), other)
    assert not side.under_way
    ahead.expect(batch_of(9))
    ahead.make_expected()
    check(ahead.get(batch_of(9)), batch_of(9))


def test_no_room_for_a_second_batch_is_no_failure(
    ahead: Prefetch, kernels: CountingKernels
) -> None:
    """The present one goes on, and the next is made when it is its turn."""
    present = ahead.get(batch_of(1, 2))
    kernels.full = True
    ahead.expect(batch_of(3, 4))
    ahead.make_expected()
    kernels.full = False
    check(present, batch_of(1, 2))
    check(ahead.get(batch_of(3, 4)), batch_of(3, 4))


def test_forgetting_frees_the_buffers(ahead: Prefetch, side: Side) -> None:
    """Work under way is waited for; the next batch is made as the first was."""
    ahead.get(batch_of(1, 2))
    ahead.expect(batch_of(3, 4))
    ahead.make_expected()
    ahead.forget()
    assert not side.under_way
    check(ahead.get(batch_of(3, 4)), batch_of(3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_second_stream_gives_the_same() -> None:
    """Many batches, each made while the one before keeps the first stream busy."""
    device = torch.device("cuda:0")
    kernels = kernels_for(device)
    ahead = prefetch_of(kernels, device, 256, 4096, SideStream(device))
    alone = prefetch_of(kernels, device, 256, 4096)
    busy = torch.randn(2048, 2048, device=device)
    batches = [Batch("block", "key", tuple(range(i, i + 32)), 32, 64) for i in range(0, 640, 32)]
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        prepared = ahead.get(batch)
        if following is not None:
            ahead.expect(following)
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy, dim=1)
        kept = prepared.inputs.clone()
        ahead.make_expected()
        assert torch.equal(kept, alone.get(batch).inputs)
    ahead.close()
    alone.close()
