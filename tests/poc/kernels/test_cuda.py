"""The Triton kernels against the judge: on a GPU, and without one in Triton's interpreter.

The tests marked `gpu` are one body for both. Without a GPU, `test_the_same_in_the_interpreter` runs
them in a process of its own, as the interpreter has to be chosen before the kernels are imported.
What it cannot show is what a GPU executes; the last tests compile the kernels and read that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.kernels import reference
from pocqueue.poc.kernels.reference import ReferenceKernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

on_cuda = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")


def on_device(test: Callable[..., None]) -> Callable[..., None]:
    """Run on a GPU or in the interpreter."""
    absent = not INTERPRETED and not torch.cuda.is_available()
    for mark in (pytest.mark.gpu, pytest.mark.skipif(absent, reason="no CUDA device")):
        test = mark(test)
    return test


@pytest.fixture
def kernels() -> Any:
    from pocqueue.poc.kernels.cuda.kernels import CudaKernels

    return CudaKernels(DEVICE)


@pytest.fixture
def judge() -> ReferenceKernels:
    return ReferenceKernels(DEVICE)


def size(on_gpu: int, interpreted: int) -> int:
    return interpreted if INTERPRETED else on_gpu


def written(kernels: Any, seeds: list[int], n: int, dtype: torch.dtype) -> torch.Tensor:
    """Let kernels write inputs amid a larger buffer, and see that they write nothing else."""
    # 64 numbers before and after keep the rows aligned as in a buffer of their own.
    buffer = torch.full((len(seeds) * n + 128,), 77.0, dtype=dtype, device=DEVICE)
    out = buffer[64:-64].view(len(seeds), n)
    kernels.write_inputs(seeds, out)
    assert (buffer[:64] == 77.0).all()
    assert (buffer[-64:] == 77.0).all()
    return out


def bfloat16_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Count the bfloat16 numbers from a to b, both zeros as one."""

    def place(x: torch.Tensor) -> torch.Tensor:
        bits = x.to(torch.bfloat16).view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (place(a) - place(b)).abs()


@on_device
def test_inputs_are_the_judges_to_the_last_place(kernels: Any, judge: ReferenceKernels) -> None:
    """As bfloat16 at most 1 in 100,000 is not equal, and none by more than one unit."""
    seeds = list(range(1, 1 + size(32, 8)))
    n = size(256 * 1024, 40_000)
    share = 1e-5
    if INTERPRETED:
        import triton  # type: ignore[import-not-found,unused-ignore]

        # An older interpreter's fma rounds twice; 3.6 does.
        share = 1e-5 if [int(v) for v in triton.__version__.split(".")[:2]] >= [3, 9] else 1e-4
    got = written(kernels, seeds, n, torch.float32)
    expected = torch.empty_like(got)
    judge.write_inputs(seeds, expected)
    steps = bfloat16_steps(got, expected)
    assert steps.max() <= 1
    assert steps.count_nonzero() <= share * steps.numel()
    # Float32's own last places; numbers are up to 6.8.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@on_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 33, 4096])
def test_half_precision_is_float32_rounded(kernels: Any, dtype: torch.dtype, n: int) -> None:
    """The same numbers whatever the dtype, rounded to the nearest."""
    full = written(kernels, [5, 6, 7], n, torch.float32)
    half = written(kernels, [5, 6, 7], n, dtype)
    expected = full.to(dtype)
    if INTERPRETED and dtype == torch.bfloat16:
        # The interpreter cuts off instead; test_inputs_compile_to_what_was_meant sees the GPU's.
        expected = (full.view(torch.int32) & -(2**16)).view(torch.float32).to(dtype)
    assert torch.equal(half, expected)


@on_device
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 255, 512, 513, 515])
def test_inputs_of_any_shape(kernels: Any, judge: ReferenceKernels, rows: int, n: int) -> None:
    """Odd lengths, incomplete blocks and row groups: each number where it belongs."""
    seeds = [2**32 - 1 - i for i in range(rows)]
    got = written(kernels, seeds, n, torch.float32)
    expected = torch.empty_like(got)
    judge.write_inputs(seeds, expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def seed_that_hashes(k: int, wanted: int) -> int:
    """Return the seed with which k hashes to a number: for one k, the hash is a bijection of seeds."""
    mask = 2**32 - 1
    h = wanted ^ wanted >> 16
    h = h * pow(0xC2B2AE35, -1, 2**32) & mask
    h ^= h >> 13 ^ h >> 26
    h = h * pow(0x85EBCA6B, -1, 2**32) & mask
    h ^= h >> 16
    h = (h - 0xE6546B64) * pow(5, -1, 2**32) & mask
    h = (h >> 13 | h << 19) & mask
    k = k * 0xCC9E2D51 & mask
    return h ^ (k << 15 | k >> 17) * 0x1B873593 & mask


@on_device
def test_inputs_at_the_edges_of_uniform(kernels: Any, judge: ReferenceKernels) -> None:
    """u1 of 0 and 1 and just beside, u2 at and beside each quarter and eighth of a turn."""
    top = 2**32 - 1
    radii = [seed_that_hashes(0, h) for h in (0, 1, 2, top, top - 127, top - 128, top - 400)]
    beside = (-257, -128, -1, 0, 1, 128, 257)
    angles = [i * 2**29 + d for i in range(9) for d in beside if 0 <= i * 2**29 + d <= top]
    seeds = radii + [seed_that_hashes(1, h) for h in angles]
    assert [int(reference.hash(s, 2, "cpu")[1]) & top for s in seeds[len(radii) :]] == angles
    got = written(kernels, seeds, 2, torch.float32)
    expected = torch.empty_like(got)
    judge.write_inputs(seeds, expected)
    # The cosine of what is nearest to 3/4 of a turn is 1e-8: 11 of its own units off.
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    assert got[3].tolist() == [0.0, 0.0]


@on_device
@pytest.mark.parametrize("n", [515, 4096])
def test_inputs_do_not_depend_on_the_batch(kernels: Any, n: int) -> None:
    """Again, alone and in another place, a row is the same bit for bit."""
    seeds = [3, 2**31, 7, 2**32 - 1, 0, 12]
    batch = written(kernels, seeds, n, torch.float32)
    assert torch.equal(batch, written(kernels, seeds, n, torch.float32))
    assert torch.equal(batch.flip(0), written(kernels, seeds[::-1], n, torch.float32))
    for i, seed in enumerate(seeds):
        assert torch.equal(batch[i : i + 1], written(kernels, [seed], n, torch.float32))


@on_device
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 20, 21, 641, 1024, size(151_936, 2500)])
def test_permutations_are_the_judges(
    kernels: Any, judge: ReferenceKernels, vocab_size: int
) -> None:
    """Element for element, and again from `prepare`."""
    seeds = [0, 2**32 - 1, 1234][: size(3, 2)]
    got = kernels.permutations(seeds, vocab_size)
    assert got.dtype == torch.int64
    assert torch.equal(got, judge.permutations(seeds, vocab_size))
    assert torch.equal(kernels.prepare(seeds, vocab_size), got)


@on_device
def test_buckets_may_be_fuller_than_a_tile(judge: ReferenceKernels) -> None:
    """Keys that fall together more than ever expected are sorted all the same."""
    from pocqueue.poc.kernels.cuda.kernels import CudaKernels

    kernels = CudaKernels(DEVICE, bucket_size=300)
    assert torch.equal(kernels.permutations([5, 6], 601), judge.permutations([5, 6], 601))


def logits_at(
    angles: torch.Tensor, seeds: list[int], target: torch.Tensor, judge: ReferenceKernels
) -> torch.Tensor:
    """Make rows whose permuted directions are at these angles from the target, of any length."""
    order = judge.permutations(seeds, len(target))
    across = torch.stack([reference.normal(seed, len(target), DEVICE) for seed in seeds])
    across -= (across @ target)[:, None] * target
    across /= torch.linalg.vector_norm(across, dim=1, keepdim=True)
    permuted = angles.cos()[:, None] * target + angles.sin()[:, None] * across
    permuted *= torch.logspace(-6, 6, len(seeds), device=DEVICE)[:, None]
    return torch.empty_like(permuted).scatter_(1, order, permuted)


def unit_target(vocab_size: int) -> torch.Tensor:
    target = reference.normal(99, vocab_size, DEVICE)
    return target.div_(reference.norm(target))


@on_device
@pytest.mark.parametrize("vocab_size", [2, size(8192, 400), size(151_936, 8200)])
def test_distances_are_the_judges(kernels: Any, judge: ReferenceKernels, vocab_size: int) -> None:
    """From 0 to 2, near 0 too, where the difference of float32 sums would have no digits left."""
    angles = torch.tensor([0.0, 1e-5, 1e-3, 0.1, 1.5, 1.6, 3.0, torch.pi], device=DEVICE)
    if INTERPRETED and vocab_size > 1000:
        angles = angles[[1]]  # seconds each
    seeds = list(range(20, 20 + len(angles)))
    target = unit_target(vocab_size)
    logits = logits_at(angles, seeds, target, judge)
    got = kernels.distances(logits, kernels.prepare(seeds, vocab_size), target)
    assert got.dtype == torch.float32
    expected = judge.distances(logits, judge.prepare(seeds, vocab_size), target)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(got, 2 * (angles / 2).sin(), rtol=0, atol=2e-6)


@on_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_distances_of_any_float_and_strides(
    kernels: Any, judge: ReferenceKernels, dtype: torch.dtype
) -> None:
    """Logits are used as float32, where they are, and stay as they were."""
    n = size(5000, 200)
    wide = torch.stack([reference.normal(seed, 2 * n, DEVICE) for seed in range(6)]).to(dtype)
    target, seeds = unit_target(n), [1, 2, 3]
    prepared = kernels.prepare(seeds, n)
    for logits in (wide[::2, :n], wide[:3, ::2], wide[:3, :n].T.contiguous().T):
        before = logits.clone()
        got = kernels.distances(logits, prepared, target)
        expected = judge.distances(logits, judge.prepare(seeds, n), target)
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
        assert torch.equal(logits, before)


@on_device
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, as interpreter
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, -torch.inf])
def test_logits_without_a_direction_have_no_distance(kernels: Any, bad: float) -> None:
    """All zero, or with one that is not finite, give NaN, and only in their own row."""
    logits = torch.ones(3, 50, device=DEVICE)
    logits[1, 7 if bad else slice(None)] = bad
    got = kernels.distances(logits, kernels.prepare([1, 2, 3], 50), unit_target(50))
    assert got.isnan().tolist() == [False, True, False]


@on_device
def test_distances_do_not_depend_on_the_batch(kernels: Any) -> None:
    """Again, alone and in another place, a row's distance is the same bit for bit."""
    n = size(151_936, 300)
    seeds = [4, 5, 6]
    logits = torch.stack([reference.normal(seed, n, DEVICE) for seed in seeds])
    target = unit_target(n)

    def distances(rows: list[int]) -> torch.Tensor:
        prepared = kernels.prepare([seeds[row] for row in rows], n)
        result: torch.Tensor = kernels.distances(logits[rows], prepared, target)
        return result

    batch = distances([0, 1, 2])
    assert torch.equal(batch, distances([0, 1, 2]))
    assert torch.equal(batch, distances([2, 1, 0]).flip(0))
    for row in range(3):
        assert torch.equal(batch[row : row + 1], distances([row]))


@on_device
def test_another_vocabulary_is_refused(kernels: Any) -> None:
    """More logits than the round's vocabulary, or another number of rows, are not cut off quietly."""
    prepared = kernels.prepare([1, 2], 20)
    for shape in ((2, 21), (2, 19), (3, 20)):
        with pytest.raises(InvalidRound, match="vocab_size is 20"):
            kernels.distances(torch.ones(shape, device=DEVICE), prepared, unit_target(20))


@on_device
def test_no_rows_are_no_work(kernels: Any) -> None:
    """An empty batch has a shape all the same."""
    kernels.write_inputs([], torch.empty(0, 8, device=DEVICE))
    assert kernels.permutations([], 20).shape == (0, 20)
    logits = torch.empty(0, 20, device=DEVICE)
    assert kernels.distances(logits, kernels.prepare([], 20), unit_target(20)).shape == (0,)


@pytest.mark.gpu
@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_nothing_waits_for_the_gpu(kernels: Any, judge: ReferenceKernels) -> None:
    """On a stream of its own, with torch told to raise where it would synchronise."""
    logits, target = torch.randn(4, 3000, device=DEVICE), unit_target(3000)
    out = torch.empty(4, 999, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        torch.cuda.set_sync_debug_mode("error")
        try:
            kernels.write_inputs([1, 2, 3, 4], out)
            got = kernels.distances(logits, kernels.prepare([1, 2, 3, 4], 3000), target)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    expected = judge.distances(logits, judge.prepare([1, 2, 3, 4], 3000), target)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(out[3], reference.normal(4, 999, DEVICE), rtol=0, atol=1e-6)


@pytest.mark.gpu
@on_cuda
def test_the_longest_row(kernels: Any) -> None:
    """2^31 - 1 numbers a row, and a second row that starts beyond what int32 can count."""
    n = 2**31 - 1
    if torch.cuda.mem_get_info()[0] < 2 * 2 * n + 2**30:
        pytest.skip("needs 9 GiB of GPU memory")
    out = torch.zeros(2, n, dtype=torch.bfloat16, device=DEVICE)
    kernels.write_inputs([8, 9], out)
    half = (n + 1) // 2
    for k in (0, 12345, half - 2):
        u1, u2 = (hash_of(i, 9) / 2**32 for i in (k, k + half))
        radius, angle = (-2 * torch.tensor(u1).log()).sqrt(), 2 * torch.pi * torch.tensor(u2)
        expected = torch.stack([radius * angle.cos(), radius * angle.sin()])
        torch.testing.assert_close(out[1, [k, k + half]].cpu().float(), expected, rtol=0.01, atol=0)
    assert out[1, -1] != 0


def hash_of(k: int, seed: int) -> int:
    """Hash one number, which may be too large for a tensor of all before it."""
    mask = 2**32 - 1
    k = k * 0xCC9E2D51 & mask
    h = seed ^ (k << 15 | k >> 17) * 0x1B873593 & mask
    h = ((h << 13 | h >> 19) * 5 + 0xE6546B64) & mask
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_the_same_in_the_interpreter() -> None:
    """Arithmetic, indices and masks of the kernels, on the CPU."""
    pytest.importorskip("triton")
    run = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    # Triton 3.6's interpreter and today's numpy.
    run += ["-W", "ignore:Conversion of an array:DeprecationWarning"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*run, __file__],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


POINTERS = {
    "out": "*bf16",
    "seeds": "*u32",
    "order": "*i32",
    "counts": "*i32",
    "members": "*i32",
    "starts": "*i32",
    "logits": "*bf16",
    "target": "*fp32",
    "sums": "*fp64",
    "distances": "*fp32",
}


def compiled(kernel: str, arch: int, warps: int = 4, aligned: bool = True, **consts: int) -> str:
    """Compile a kernel for a GPU that need not be there. Returns PTX, one instruction a line.

    Args:
        kernel: its name.
        arch: compute capability, times ten.
        warps: of a program.
        aligned: whether pointers and numbers are known to be multiples of 16.
        consts: the constants of the kernel.
    """
    pytest.importorskip("triton")
    import triton  # type: ignore[import-not-found,unused-ignore]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found,unused-ignore]

    from pocqueue.poc.kernels.cuda import triton_kernels

    function = getattr(triton_kernels, kernel)
    names: list[str] = function.arg_names
    kinds = {name: "constexpr" if name in consts else POINTERS.get(name, "i32") for name in names}
    known = [[["tt.divisibility", 16]]] if aligned else []
    source = triton.compiler.ASTSource(
        fn=function,
        signature=kinds,
        constexprs=consts,
        attrs={(names.index(n),): k for n in names if n not in consts for k in known},
    )
    options = {"enable_fp_fusion": False, "num_warps": warps}
    ptx: str = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm[
        "ptx"
    ]
    lines = (re.sub(r"^@!?%p\d+\s+", "", line.strip()) for line in ptx.splitlines())
    return "\n".join(line for line in lines if re.match(r"[a-z]\S*\s", line))


every_arch = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing"),
    pytest.mark.parametrize("arch", [80, 90]),
]


def for_every_arch(test: Callable[..., None]) -> Callable[..., None]:
    for mark in every_arch:
        test = mark(test)
    return test


@for_every_arch
def test_inputs_compile_to_what_was_meant(arch: int) -> None:
    """Nothing approximate but rsqrt, no fused or unfused surprise, unsigned shifts, whole vectors."""
    ptx = compiled("write_normals", arch, warps=1, PAIRS=256, ROWS=4)
    assert set(re.findall(r"\S*approx\S*", ptx)) == {"rsqrt.approx.ftz.f32"}
    # Of 8 pairs each; all float arithmetic rounds to the nearest, as the interpreter does.
    assert ptx.count("fma.rn.f32") == 8 * 22
    assert not re.search(r"^(mad|div|sqrt|call|ex2|lg2|sin|cos)\.\S*f32", ptx, re.M)
    assert not re.search(r"^(add|sub|mul|fma)\.(?!rn\.)\S*f32", ptx, re.M)
    assert ptx.count("cvt.rn.f32.u32") == 8 * 2
    assert "shr.s32" not in ptx
    assert ptx.count("cvt.rn.bf16x2.f32") == 8
    assert ptx.count("st.global.v4.b32") == 2
    assert ".local" not in ptx


@for_every_arch
def test_rows_of_odd_length_are_stored_one_by_one(arch: int) -> None:
    """Where rows begin anywhere there are no vectors that would have to be aligned."""
    ptx = compiled("write_normals", arch, warps=1, aligned=False, PAIRS=256, ROWS=4)
    assert set(re.findall(r"st\.global\S*", ptx)) == {"st.global.b16"}


@for_every_arch
def test_numbers_that_are_one_compile(arch: int) -> None:
    """Triton makes constants of arguments that are 1, which have not all that variables have."""
    assert "st.global.b16" in compiled(
        "write_normals", arch, 1, False, n=1, half=1, PAIRS=256, ROWS=4
    )
    for kernel in ("count_buckets", "fill_buckets"):
        assert "st.global" in compiled(kernel, arch, 4, False, n=1, SHIFT=31, BLOCK=1024)
    assert "st.global" in compiled("order_buckets", arch, 1, False, n=1, SHIFT=31, TILE=32)
    ones = {"n": 1, "row_stride": 1, "stride": 1}
    assert "fma.rn.f64" in compiled("sum_products", arch, 4, False, CHUNK=8192, BLOCK=1024, **ones)
    assert "div.rn.f64" in compiled("finish_distances", arch, 4, False, chunks=1, BLOCK=128)


@for_every_arch
def test_buckets_compile_to_what_was_meant(arch: int) -> None:
    """Unsigned shifts and bounds, relaxed atomics, no spilling."""
    count = compiled("count_buckets", arch, SHIFT=18, BLOCK=1024)
    assert count.count("atom.global.gpu.relaxed.add.u32") == 8
    fill = compiled("fill_buckets", arch, SHIFT=18, BLOCK=1024)
    order = compiled("order_buckets", arch, warps=1, SHIFT=18, TILE=32)
    for ptx in (count, fill, order):
        assert "shr.s32" not in ptx
        assert ".local" not in ptx
    for ptx in (count, fill):
        assert "setp.lt.u32" in ptx
        assert not re.search(r"^setp\.l[te]\.s32", ptx, re.M)


@for_every_arch
def test_distances_compile_to_what_was_meant(arch: int) -> None:
    """Sums in float64, exactly rounded quotient and roots, no spilling."""
    sums = compiled("sum_products", arch, CHUNK=8192, BLOCK=1024, stride=1)
    assert sums.count("fma.rn.f64") == 8 * 3
    finish = compiled("finish_distances", arch, BLOCK=128)
    assert "div.rn.f64" in finish
    assert finish.count("sqrt.rn.f64") == 2
    for ptx in (sums, finish):
        assert ".local" not in ptx
        assert "approx" not in ptx
