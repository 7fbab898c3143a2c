"""The compiled kernels against the judge, on every shape and from any thread."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from pocqueue.errors import InvalidRound
from pocqueue.poc.kernels.cpu import team as cpu_team
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.cpu.permutations import write_permutations
from pocqueue.poc.kernels.reference import ReferenceKernels, normal

CPU = torch.device("cpu")
FAST = CpuKernels()
JUDGE = ReferenceKernels(CPU)

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Have a team, where the run has one thread (tests/conftest.py)."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(two_threads: None) -> None:
    torch.set_num_threads(1)


def inputs(kernels: CpuKernels | ReferenceKernels, rows: list[int], n: int) -> torch.Tensor:
    out = torch.full((len(rows), n), math.nan)
    kernels.write_inputs(rows, out)
    return out


def places(x: torch.Tensor) -> torch.Tensor:
    """Number the bfloat16 numbers in their order, both zeros as one."""
    bits = x.to(torch.bfloat16).view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def unit(n: int) -> torch.Tensor:
    target = normal(1, n, CPU).double()
    result: torch.Tensor = (target / target.norm()).float()
    return result


@given(rows=st.lists(seeds, min_size=1, max_size=4), n=st.integers(1, 5000))
@settings(deadline=None, max_examples=60)
def test_inputs_of_any_shape(rows: list[int], n: int) -> None:
    """Each number where it belongs, to float32's last places, odd lengths too."""
    torch.testing.assert_close(inputs(FAST, rows, n), inputs(JUDGE, rows, n), rtol=0, atol=2e-6)


def test_inputs_differ_in_bfloat16_once_in_a_hundred_thousand_at_most() -> None:
    """By one unit in the last place then; counted over eight million numbers."""
    rows = list(range(100, 132))
    step = places(inputs(FAST, rows, 256 * 1024)) - places(inputs(JUDGE, rows, 256 * 1024))
    assert int(step.abs().max()) <= 1
    assert int((step != 0).sum()) <= step.numel() / 100_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 33, 40_001])
def test_half_precision_is_float32_rounded(dtype: torch.dtype, n: int) -> None:
    """The same numbers whatever the dtype, to the nearest and ties to even, as torch casts."""
    rows = [5, 2**32 - 1]
    out = torch.empty(2, n, dtype=dtype)
    FAST.write_inputs(rows, out)
    assert torch.equal(out, inputs(FAST, rows, n).to(dtype))


@given(rows=st.lists(seeds, min_size=1, max_size=4), n=st.integers(1, 5000))
@settings(deadline=None, max_examples=60)
def test_permutations_of_any_size_are_the_judges(rows: list[int], n: int) -> None:
    """Element for element."""
    assert torch.equal(FAST.permutations(rows, n), JUDGE.permutations(rows, n))


@pytest.mark.parametrize("n", [1, 2, 1024, 151_936, 300_001])
def test_permutations_of_real_vocabularies_are_the_judges(n: int) -> None:
    """Up to those beyond the largest in use."""
    rows = [0, 1, 2**31, 2**32 - 1]
    assert torch.equal(FAST.permutations(rows, n), JUDGE.permutations(rows, n))


@given(
    rows=st.lists(seeds, min_size=1, max_size=3),
    n=st.integers(1, 3000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    scale=st.floats(1e-3, 1e3),
)
@settings(deadline=None, max_examples=60)
def test_distances_are_the_judges(
    rows: list[int], n: int, dtype: torch.dtype, scale: float
) -> None:
    """Within 2e-6, for logits of every dtype that models have."""
    logits = torch.stack([scale * normal(seed ^ 1, n, CPU) for seed in rows]).to(dtype)
    expected = JUDGE.distances(logits, JUDGE.prepare(rows, n), unit(n))
    got = FAST.distances(logits, FAST.prepare(rows, n), unit(n))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("n", [1024, 151_936])
@pytest.mark.parametrize("wanted", [0.0, 1e-6, 1e-4, 1e-2, 1.0, 1.9999, 2.0])
def test_distances_keep_their_digits_from_end_to_end(n: int, wanted: float) -> None:
    """Logits that land at a given distance, near 0 and near 2 too, where a shorter formula fails."""
    target = unit(n).double()
    target /= target.norm()
    aside = normal(2, n, CPU).double()
    aside -= (aside @ target) * target
    aside /= aside.norm()
    angle = 2 * math.asin(wanted / 2)
    permuted = 30 * (math.cos(angle) * target + math.sin(angle) * aside)
    logits = torch.empty(1, n)
    logits[0, FAST.permutations([9], n)[0]] = permuted.float()
    expected = JUDGE.distances(logits, JUDGE.prepare([9], n), unit(n)).item()
    got = FAST.distances(logits, FAST.prepare([9], n), unit(n)).item()
    assert got == pytest.approx(expected, abs=2e-6)
    assert got == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_logits_without_a_direction_have_no_distance(bad: float, dtype: torch.dtype) -> None:
    """All zero, one NaN and one infinity give NaN, and only in their own row."""
    logits = torch.stack([normal(3, 50, CPU), normal(4, 50, CPU)]).to(dtype)
    if bad == 0.0:
        logits[1] = 0
    else:
        logits[1, 7] = bad
    got = FAST.distances(logits, FAST.prepare([1, 2], 50), unit(50))
    assert torch.isnan(got).tolist() == [False, True]


def test_logits_may_have_any_strides() -> None:
    """Columns apart, rows apart, rows in the middle of a larger tensor."""
    n, rows = 257, [3, 4, 5]
    plain = torch.stack([normal(seed, n, CPU) for seed in rows])
    expected = FAST.distances(plain, FAST.prepare(rows, n), unit(n))
    wide = torch.zeros(3, 2 * n)
    wide[:, ::2] = plain
    rows_apart = torch.zeros(6, n + 5)
    rows_apart[::2, 3:-2] = plain
    for logits in (wide[:, ::2], rows_apart[::2, 3:-2], plain.T.contiguous().T):
        before = logits.clone()
        assert torch.equal(FAST.distances(logits, FAST.prepare(rows, n), unit(n)), expected)
        assert torch.equal(logits, before)


def test_another_vocabulary_is_refused() -> None:
    """Nothing is read beyond a row's end."""
    with pytest.raises(InvalidRound, match="vocab_size is 64"):
        FAST.distances(torch.ones(1, 63), FAST.prepare([1], 64), unit(64))


@pytest.mark.usefixtures("one_thread")
def test_numbers_do_not_depend_on_the_number_of_threads() -> None:
    """One thread and several give the same bits."""
    rows, n = list(range(9)), 40_001
    logits = torch.stack([normal(seed, n, CPU) for seed in rows])

    def everything() -> list[torch.Tensor]:
        return [
            inputs(FAST, rows, n),
            FAST.permutations(rows, n),
            FAST.distances(logits, FAST.prepare(rows, n), unit(n)),
        ]

    alone = everything()
    for num_threads in (2, 3, 5):
        torch.set_num_threads(num_threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(), strict=True))


def test_rows_do_not_depend_on_their_batch() -> None:
    """Alone and among others, a nonce has the same numbers bit for bit."""
    rows, n = [7, 2**32 - 1, 0, 123], 4097
    logits = torch.stack([normal(seed, n, CPU) for seed in range(4)])
    together = inputs(FAST, rows, n), FAST.distances(logits, FAST.prepare(rows, n), unit(n))
    for i, seed in enumerate(rows):
        assert torch.equal(inputs(FAST, [seed], n)[0], together[0][i])
        one = FAST.distances(logits[i : i + 1], FAST.prepare([seed], n), unit(n))
        assert torch.equal(one[0], together[1][i])


def test_several_python_threads_at_once() -> None:
    """Each has a team and scratch of its own; results do not mix."""
    n = 20_011
    expected = {seed: FAST.permutations([seed, seed + 1], n) for seed in range(0, 80, 2)}
    ready = threading.Barrier(4)

    def work(first: int) -> bool:
        ready.wait(timeout=120)
        mine = range(first, 80, 8)
        return all(
            torch.equal(FAST.permutations([seed, seed + 1], n), expected[seed]) for seed in mine
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(0, 8, 2)))


def test_no_rows_are_no_work() -> None:
    """Empty in, empty out."""
    assert inputs(FAST, [], 5).shape == (0, 5)
    assert FAST.permutations([], 5).shape == (0, 5)
    assert FAST.distances(torch.ones(0, 5), FAST.prepare([], 5), unit(5)).shape == (0,)


def test_memory_of_a_result_is_used_again_when_nobody_has_it() -> None:
    """And not before: a view of a tensor is enough to keep it."""
    kernels = CpuKernels()
    first = kernels.permutations([1, 2], 1000)
    address, row, expected = first.data_ptr(), first[1], first[1].clone()
    del first
    assert kernels.permutations([3, 4], 1000).data_ptr() != address
    assert torch.equal(row, expected)
    del row
    assert kernels.permutations([5], 1000).data_ptr() == address


def _in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=1000,
    )


_PERMUTE = """
import logging, os, torch
logging.basicConfig(level=logging.WARNING)
from pocqueue.poc.kernels.cpu import team as cpu_team
from pocqueue.poc.kernels.cpu.kernels import CpuKernels
from pocqueue.poc.kernels.cpu.permutations import write_permutations
kernels = CpuKernels()
"""


def test_a_forked_process_works_alone() -> None:
    """libgomp's threads stay behind in the parent; waiting for them would be for ever."""
    done = _in_a_process(
        _PERMUTE
        + """
expected = kernels.permutations([1, 2, 3], 5000)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(kernels.permutations([1, 2, 3], 5000), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert done.stdout.strip() == "0"


def test_compiled_code_is_kept_where_the_operator_says(tmp_path: Path) -> None:
    """The first process fills the folder; the second compiles nothing."""
    code = _PERMUTE + "print(kernels.permutations([1], 100).sum().item())"
    first = _in_a_process(code, NUMBA_CACHE_DIR=str(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}
    assert kept
    second = _in_a_process(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stdout == second.stdout == "4950\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")} == kept


def test_without_a_place_to_keep_code_it_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only installation and no home: slower to start, and the log says what to do."""
    cfunc = numba.cfunc

    def nowhere(signature: str, **options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("no locator available for file 'order.py'.")
        return cfunc(signature, **options)

    monkeypatch.setattr(numba, "cfunc", nowhere)
    with caplog.at_level(logging.WARNING):
        assert cpu_team.compiled.__wrapped__(write_permutations).address
    assert "no locator available" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_torchs_threads_stay_as_they_were() -> None:
    """No numba threading layer starts, which would let torch's teams nest and make it far slower."""
    done = _in_a_process(
        """
import ctypes, torch
torch.ones(2000, 2000).sum()
libgomp = ctypes.CDLL("libgomp.so.1")
settings = lambda: (libgomp.omp_get_nested(), libgomp.omp_get_max_active_levels())
before = settings()
"""
        + _PERMUTE
        + """
import numba
kernels.permutations([1, 2], 5000)
try:
    layer = numba.threading_layer()
except ValueError:
    layer = "none"
print(layer, settings() == before, kernels.layer)
"""
    )
    assert done.stdout == "none True torch's OpenMP team\n"


def test_hashes_are_found_again() -> None:
    """The inverse of the hash on a million hashes, by what sorting leaves: each number once."""
    n = 1 << 20
    assert np.array_equal(np.sort(FAST.permutations([77], n)[0].numpy()), np.arange(n))
