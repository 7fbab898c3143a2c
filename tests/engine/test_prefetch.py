"""What is made ahead is what would have been made, in a buffer that the model is not using."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from typing_extensions import override

from pocqueue.engine.prefetch import Preparation, Prepared
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import kernels_for
from pocqueue.poc.kernels.reference import ReferenceKernels
from pocqueue.poc.seeds import input_seeds, permutation_seeds

CPU = torch.device("cpu")
HIDDEN, VOCAB = 16, 40


class Journal:
    """An `Aside` that works at once and notes what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def mark(self) -> None:
        self.said.append("mark")

    @contextmanager
    def working(self) -> Iterator[None]:
        self.said.append("work")
        yield

    def join(self) -> None:
        self.said.append("join")


class CountingKernels(ReferenceKernels):
    """The judge; counts the batches whose inputs it makes, and may run out of memory."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.made = 0
        self.full = False

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        if self.full:
            raise torch.OutOfMemoryError("no room")
        self.made += 1
        super().write_inputs(seeds, out)


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
    distances = judge.distances(logits, prepared.order, target)
    permutations = judge.permutations(permutation_seeds(*names), VOCAB)
    permuted = torch.gather(logits, 1, permutations)
    expected = (torch.nn.functional.normalize(permuted, dim=1) - target).norm(dim=1)
    assert distances.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def kernels() -> CountingKernels:
    return CountingKernels()


@pytest.fixture
def ahead(journal: Journal, kernels: CountingKernels) -> Iterator[Preparation]:
    """A preparation that makes batches ahead, as on a GPU."""
    made = Preparation(kernels, HIDDEN, VOCAB, CPU, torch.float32, journal)
    yield made
    made.close()


def test_batches_made_when_they_are_wanted() -> None:
    """On the CPU: one buffer, announced or not."""
    preparation = Preparation(ReferenceKernels(CPU), HIDDEN, VOCAB, CPU, torch.float32)
    first, second = batch_of(1, 2), batch_of(3)
    one = preparation.take(first)
    check(one, first)
    preparation.announce(second)
    preparation.advance()
    check(one, first)  # still the model's
    two = preparation.take(second)
    check(two, second)
    assert two.inputs.data_ptr() == one.inputs.data_ptr()
    preparation.close()


def test_the_announced_batch_is_made_beside_the_present_one(
    ahead: Preparation, journal: Journal, kernels: CountingKernels
) -> None:
    """In the other buffer, behind the mark; the model waits for it before it is handed over."""
    batches = [batch_of(1, 2), batch_of(3, 4), batch_of(5, 6)]
    present = ahead.take(batches[0])
    for following in batches[1:]:
        before = present.inputs.clone()
        ahead.announce(following)
        ahead.advance()
        assert torch.equal(present.inputs, before)
        taken = ahead.take(following)
        check(taken, following)
        assert taken.inputs.data_ptr() != present.inputs.data_ptr()
        present = taken
    assert kernels.made == 3
    assert journal.said == ["mark", *["work", "join", "mark"] * 2]


def test_another_batch_than_the_announced_one_is_made_anew(
    ahead: Preparation, journal: Journal
) -> None:
    """What was made ahead is waited for before its memory is used again."""
    ahead.take(batch_of(1, 2))
    ahead.announce(batch_of(3, 4))
    ahead.advance()
    other = batch_of(3, 4, block="another", seq_len=6)
    check(ahead.take(other), other)
    assert journal.said == ["mark", "work", "join", "mark"]
    ahead.announce(batch_of(9))
    ahead.advance()
    check(ahead.take(batch_of(9)), batch_of(9))


def test_no_room_for_a_second_batch_is_no_failure(
    ahead: Preparation, kernels: CountingKernels
) -> None:
    """The present one goes on, and the next is made when it is its turn."""
    present = ahead.take(batch_of(1, 2))
    kernels.full = True
    ahead.announce(batch_of(3, 4))
    ahead.advance()
    kernels.full = False
    check(present, batch_of(1, 2))
    check(ahead.take(batch_of(3, 4)), batch_of(3, 4))


def test_forgetting_frees_the_buffers(ahead: Preparation, journal: Journal) -> None:
    """Work under way is waited for; the next batch is made as the first was."""
    ahead.take(batch_of(1, 2))
    ahead.announce(batch_of(3, 4))
    ahead.advance()
    ahead.forget()
    assert journal.said[-1] == "join"
    check(ahead.take(batch_of(3, 4)), batch_of(3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_second_stream_gives_the_same() -> None:
    """Many batches, each made while the one before keeps the first stream busy."""
    from pocqueue.engine.prefetch import CudaAside

    device = torch.device("cuda:0")
    kernels = kernels_for(device)
    ahead = Preparation(kernels, 256, 4096, device, torch.float32, CudaAside(device))
    alone = Preparation(kernels, 256, 4096, device, torch.float32)
    busy = torch.randn(2048, 2048, device=device)
    batches = [Batch("block", "key", tuple(range(i, i + 32)), 32, 64) for i in range(0, 640, 32)]
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        prepared = ahead.take(batch)
        if following is not None:
            ahead.announce(following)
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy, dim=1)
        kept = prepared.inputs.clone()
        ahead.advance()
        assert torch.equal(kept, alone.take(batch).inputs)
    ahead.close()
    alone.close()
