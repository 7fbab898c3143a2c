"""How many tokens one pass of an engine can have, by what a pass at its start needs of the device's memory."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from pathlib import Path

from typing_extensions import override

from pocqueue.engine.base import Engine

#: Of the memory that is free, the share that a pass may take.
_MOST_MEMORY = 0.9
#: Tensors of one hidden state for each token that any pass has at the same time: input, residual, normed.
_LEAST_TENSORS = 3


def free_bytes() -> int | None:
    """Return the bytes that this process may still get, of the machine and of its control group; None: unknown."""
    machine = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                machine = 1024 * int(line.split()[1])
    group = None
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        group = max(0, limit - int((folder / "memory.current").read_text()))
    return min((free for free in (machine, group) if free is not None), default=None)


def measured_pass_tokens(engine: Engine, batch_size: int, seq_len: int) -> int:
    """Run a pass of this size, and say how many tokens a pass can have at most.

    An estimate: memory grows with tokens nearly in proportion, and others may take some meanwhile. An earlier pass,
    of one nonce, has to have taken what does not grow with tokens.

    Returns:
        0 if it is not known: of a model in another process, or spread over several devices.

    Raises:
        PocqueueError: as `Engine.warm_up` does.
    """
    info = engine.info
    is_here = engine.timer() is not None and info.tensor_parallel == 1
    meter = (
        (_CpuMemory() if info.device == "cpu" else _CudaMemory(info.device)) if is_here else None
    )
    free = None if meter is None else meter.free()
    engine.warm_up(batch_size, seq_len)
    if meter is None or free is None:
        return 0
    tokens = batch_size * seq_len
    item_bytes = 4 if info.dtype == "float32" else 2
    each = max(meter.grown() / tokens, _LEAST_TENSORS * info.hidden_size * item_bytes)
    return int(_MOST_MEMORY * free / each)


class _Memory(ABC):
    """What this process uses of a device's memory, from now on."""

    @abstractmethod
    def free(self) -> int | None:
        """Return the bytes that it may still get."""

    @abstractmethod
    def grown(self) -> int:
        """Return by how many bytes it had more at one time than in the beginning."""


class _CpuMemory(_Memory):
    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            # Sets the peak (VmHWM) to what is used now (proc_pid_clear_refs(5)).
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()

    @override
    def free(self) -> int | None:
        return free_bytes()

    @override
    def grown(self) -> int:
        return self._peak() - self._before

    def _peak(self) -> int:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return 0


class _CudaMemory(_Memory):
    def __init__(self, device: str) -> None:
        import torch

        self._device, self._cuda = device, torch.cuda
        self._cuda.reset_peak_memory_stats(device)
        self._before: int = self._cuda.memory_allocated(device)

    @override
    def free(self) -> int | None:
        # What torch has reserved and nobody uses is free as well.
        unused = self._cuda.memory_reserved(self._device) - self._before
        return int(self._cuda.mem_get_info(self._device)[0]) + unused

    @override
    def grown(self) -> int:
        return self._cuda.max_memory_allocated(self._device) - self._before
