"""Which kernels a device gets, and that wrong ones are not used."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from typing_extensions import override

from pocqueue.poc.kernels import Kernels, kernels_for, working_kernels
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")


def test_the_cpu_gets_compiled_ones_once() -> None:
    """By name or by device, the same object."""
    assert kernels_for("cpu").name == "numba"
    assert kernels_for("cpu") is kernels_for(CPU)


def test_another_device_gets_the_judge(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is wrong with that, so nothing is said."""
    with caplog.at_level(logging.WARNING):
        assert working_kernels(torch.device("meta")).name == "reference"
    assert caplog.text == ""


def _fail(*_: object) -> Kernels:
    raise OSError("LLVM is not here\nand more")


class _WrongInputs(CpuKernels):
    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        super().write_inputs(seeds, out)
        out[0, -1] += 0.1


class _WrongOrder(CpuKernels):
    @override
    def permutations(self, seeds: Sequence[int], vocab_size: int) -> torch.Tensor:
        order = super().permutations(seeds, vocab_size)
        order[1, [0, 1]] = order[1, [1, 0]]
        return order


class _WrongDistance(CpuKernels):
    @override
    def distances(
        self, logits: torch.Tensor, prepared: object, target: torch.Tensor
    ) -> torch.Tensor:
        return super().distances(logits, prepared, target) + 1e-4


class _WrongPick(CpuKernels):
    @override
    def pick(self, seeds: Sequence[int], n: int, k: int) -> torch.Tensor:
        return super().pick(seeds, n, k).sort(dim=1).values


class _WrongRotation(CpuKernels):
    @override
    def rotated(
        self, hidden: torch.Tensor, dims: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        return super().rotated(hidden, dims, vectors.flip(1))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_fail, "OSError: LLVM is not here"),
        (lambda _: _WrongInputs(), "Inputs in torch.float32 differ from the reference by 0.1"),
        (lambda _: _WrongOrder(), "Permutations differ from the reference."),
        (lambda _: _WrongDistance(), "by the reference."),
        (lambda _: _WrongPick(), "Picks differ from the reference."),
        (lambda _: _WrongRotation(), "Rotated vectors differ from the reference."),
    ],
)
def test_kernels_that_do_not_work_are_replaced(
    caplog: pytest.LogCaptureFixture, make: Callable[[torch.device], Kernels], why: str
) -> None:
    """By the judge, with one warning that says why."""
    with caplog.at_level(logging.WARNING):
        chosen = working_kernels(CPU, make)
    assert isinstance(chosen, ReferenceKernels)
    [record] = caplog.records
    assert why in record.getMessage()


def test_nothing_heavy_is_imported_before_a_device_is_asked_for() -> None:
    """The proof's modules are imported in many processes that compute nothing."""
    code = "import sys, pocqueue.poc.gpu_random; print({'numba', 'triton'}.isdisjoint(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
