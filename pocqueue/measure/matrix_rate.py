"""What a device can multiply: the rate of a large matrix product, which a model's share is taken of."""

from __future__ import annotations

import statistics
import time

import torch

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.stages import synchronize
from pocqueue.measure.profile import MatrixRate

#: Sizes of the square matrices: from the first, twice as large each time, to the last at most.
_FIRST_SIZE, _LAST_SIZE = 512, 8192
#: A product that takes this long is large enough on any device, and so are some that take less together.
_LONG_S = 0.05
_TOGETHER_S = 0.005


def measure_matrix_rate(info: EngineInfo, seconds: float = 1.0) -> MatrixRate:
    """Multiply large matrices of random numbers on an engine's device, again and again.

    The rate is the median, as a device's clock goes up and down. Matrices are taken as large as the time
    and the memory allow, since small ones do not fill a GPU.

    Args:
        info: names device and dtype. Where several GPUs share the model the first one is measured, and
            the rate is that of all; the ranks of a CPU have its cores in common.
        seconds: to measure for, about.

    Raises:
        EngineError: never; without memory for larger matrices the smaller ones stand.
    """
    device = torch.device(info.device)
    dtype: torch.dtype = getattr(torch, info.dtype)
    size, rates = _FIRST_SIZE, _rates(_FIRST_SIZE, device, dtype, 0.0)
    while size < _LAST_SIZE and 2 * size**3 / rates[-1] < _LONG_S:
        try:
            rates = _rates(2 * size, device, dtype, 0.0)
        except torch.OutOfMemoryError:
            break
        size *= 2
    rates = _rates(size, device, dtype, seconds)
    num_devices = 1 if device.type == "cpu" else info.tensor_parallel
    return MatrixRate(num_devices * statistics.median(rates), size, info.dtype, num_devices)


@torch.inference_mode()
def _rates(size: int, device: torch.device, dtype: torch.dtype, seconds: float) -> list[float]:
    """Return FLOP per second of some products, of at least one."""
    inputs, weights = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    found: list[float] = []
    repeats, deadline = 1, time.perf_counter() + seconds
    torch.nn.functional.linear(inputs, weights)  # the first one chooses a kernel
    while not found or time.perf_counter() < deadline:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            torch.nn.functional.linear(inputs, weights)
        synchronize(device)
        took = time.perf_counter() - began
        found.append(2 * size**3 * repeats / took)
        # So many that starting and waiting for them do not count.
        repeats = max(repeats, round(_TOGETHER_S * repeats / took))
    return found
