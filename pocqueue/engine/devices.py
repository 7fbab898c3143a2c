"""GPU queues, ``gpu0`` on one host, ``HOST.gpu0`` on several, and the devices that they stand for on this machine.

torch is imported when a question needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import warnings
from pathlib import Path

from pocqueue.errors import DeviceNotFound, SettingsError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SETTING = re.compile(r"auto|cpu|cuda(?::(?P<index>0|[1-9][0-9]{0,2}))?")
# No leading zeros: ``gpu1`` and ``gpu01`` would be two queues for one device. Three digits are plenty
# for one host. The host is greedy, so ``gpu1.gpu0`` is device 0 of a host named gpu1.
_GPU_QUEUE = re.compile(
    r"(?:(?P<host>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.)?gpu(?P<index>0|[1-9][0-9]{0,2})"
)


def parse_queue(name: str) -> tuple[str | None, int] | None:
    """Split the name of a GPU queue into its host and its device index.

    Args:
        name: a Celery queue name. A host has letters, digits, dots, ``-`` and ``_``.

    Returns:
        (host, index), host None if the name has none and index 0 to 999; or None if this is
        not the name of a GPU queue.
    """
    match = _GPU_QUEUE.fullmatch(name)
    return None if match is None else (match["host"], int(match["index"]))


def cuda_device_count() -> int:
    """Count the CUDA devices that torch can use in this process: 0 without CUDA.

    Imports torch (about a second). Allocates nothing on any device.
    """
    import torch

    with warnings.catch_warnings():
        # A driver that is too old or broken makes torch warn; "no device" says the same to us.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_for_queue(name: str, device_setting: str = "auto", tensor_parallel: int = 1) -> str:
    """Name the torch device that serves a GPU queue; the first of them if it has several.

    Args:
        name: a GPU queue such as ``gpu0`` or ``HOST.gpu3``.
        device_setting: the setting ``POCQUEUE_DEVICE``. "auto" takes CUDA if there is any, else
            the CPU for index 0; "cpu" takes the CPU whatever the index; "cuda" takes the CUDA device
            of the queue's index; "cuda:K" takes device K whatever the index.
        tensor_parallel: devices of one queue; >= 1. Queue ``gpuN`` then has the devices from
            N * tensor_parallel on.

    Returns:
        "cpu" or "cuda:N".

    Raises:
        SettingsError: ``device_setting`` is none of those.
        DeviceNotFound: this is not a GPU queue, or this machine has no such device.
    """
    setting = _SETTING.fullmatch(device_setting)
    if setting is None:
        raise SettingsError(
            f"POCQUEUE_DEVICE is {device_setting!r}; allowed: auto, cpu, cuda, or cuda:N such as cuda:0."
        )
    parsed = parse_queue(name)
    if parsed is None:
        raise DeviceNotFound(
            f"Queue {name!r} is not a GPU queue; allowed: gpuN or HOST.gpuN, such as gpu0."
        )
    if device_setting == "cpu":
        return "cpu"
    count = cuda_device_count()
    if setting["index"] is not None:
        index, source = int(setting["index"]), f"POCQUEUE_DEVICE={device_setting}"
    else:
        index, source = parsed[1] * tensor_parallel, f"Queue {name}"
    if count == index == 0 and device_setting == "auto":
        return "cpu"
    last = index + tensor_parallel - 1
    if last < count:
        return f"cuda:{index}"
    if count == 0:
        has = "no CUDA device. Set POCQUEUE_DEVICE=cpu to use the CPU, for any number of queues"
    elif count == 1:
        has = "1 (device 0). Use a queue of that device, such as gpu0"
    else:
        has = f"{count} (0 to {count - 1}). Use a queue of one of those, such as gpu0"
    raise DeviceNotFound(f"{source} names CUDA device {last}, but this machine has {has}.")


def device_name(device: str) -> str:
    """Name a device for people: "NVIDIA H200", or "AMD EPYC 9654, 8 threads"."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine() or "CPU"
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}"


def keep_freed_memory() -> None:
    """Have this process's allocator keep large buffers that were freed, for an engine on the CPU.

    glibc gives each back to the kernel, and a pass would fault its megabytes in anew, page by page:
    that took a quarter of a batch's time with the torch engine, a tenth with vLLM. Costs what a pass
    needs at most, which it needs again a moment later. Other allocators are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
