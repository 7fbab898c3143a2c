"""Compiles tasks and runs them on the OpenMP threads that torch has already.

There is no pool of our own: its threads would compete for the cores with torch's, which spin for a
while after every operation. (numba's OpenMP layer also changes a setting that slows torch down up to
60 times, and its workqueue ends the process if two threads use it at once.) A task is entered once by
each thread of the team; they then claim items, such as rows, off one counter until none is left. What
an item gives is the same on whichever thread, so results do not depend on how many there are.

Any Python thread may run tasks at any time. As with torch's own operations, each gets a team of its
own, and with more threads than cores all of them get slow: who cares for speed calls from the one
thread that runs the model.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import pickle
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from pocqueue.poc.kernels.cpu.bits import OPTIONS, claim_at, i64_array, inline

logger = logging.getLogger(__name__)

#: Called with the address of a job: int64, the five below and the task's own arguments after them.
TaskFunction = Callable[[int], None]

_NEXT, _NUM_ITEMS, _SLOT, _SCRATCH, _SCRATCH_BYTES = range(5)
_ARGUMENTS = 5


@inline
def claim_item(job: int) -> Any:
    """Claim the next item of a job. Returns -1 if none is left."""
    item = claim_at(job + 8 * _NEXT)
    return item if item < i64_array(job, _ARGUMENTS)[_NUM_ITEMS] else -1


@inline
def claim_scratch(job: int) -> Any:
    """Return the address of memory for this thread alone; call it once, with an item in hand."""
    fields = i64_array(job, _ARGUMENTS)
    return fields[_SCRATCH] + claim_at(job + 8 * _SLOT) * fields[_SCRATCH_BYTES]


@inline
def arguments(job: int, count: int) -> Any:
    """Return the task's own arguments, int64 ``[count]``."""
    return i64_array(job + 8 * _ARGUMENTS, count)


class Team:
    """The threads of torch's OpenMP team, or the calling thread if torch has none.

    Scratch memory is kept for the next task: one piece per calling thread, which goes with it, as
    large as its largest task needed.
    """

    def __init__(self) -> None:
        self._parallel = _find_parallel()
        #: What runs the tasks, for people.
        self.layer = "one thread" if self._parallel is None else "torch's OpenMP team"
        self._local = threading.local()
        self._forked: int | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def run(
        self, function: TaskFunction, num_items: int, scratch_bytes: int, *own_arguments: int
    ) -> None:
        """Run a task to its end. The interpreter is free meanwhile.

        Args:
            function: compiled when it is first seen.
            num_items: how many items there are to claim.
            scratch_bytes: needed by each thread.
            own_arguments: integers and addresses; what is there has to stay alive meanwhile.
        """
        address = compiled(function).address
        # All threads of the team or none: libgomp ends those that a smaller team does not need.
        num_threads = torch.get_num_threads()
        alone = (
            self._parallel is None
            or min(num_threads, num_items) <= 1
            or threading.get_ident() == self._forked
        )
        num_slots = 1 if alone else min(num_threads, num_items)
        scratch_bytes = -(-scratch_bytes // 64) * 64  # whole cache lines
        scratch = self._scratch(num_slots * scratch_bytes)
        job = np.array(
            [0, num_items, 0, scratch.ctypes.data, scratch_bytes, *own_arguments], dtype=np.int64
        )
        if alone or self._parallel is None:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(job.ctypes.data)
        else:
            self._parallel(address, job.ctypes.data, num_threads, 0)

    def _scratch(self, num_bytes: int) -> Any:
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or scratch.nbytes < num_bytes:
            scratch = self._local.scratch = np.empty(num_bytes, dtype=np.uint8)
        return scratch

    def _after_fork(self) -> None:
        # The child's only thread believes in a team that has stayed behind, and would wait for it.
        self._forked = threading.get_ident()


@cache
def compiled(function: TaskFunction) -> Any:
    """Compile a task, or load it from the disk if an earlier process compiled it.

    numba keeps compiled code in a folder beside the source, or else in the user's cache folder, or
    where NUMBA_CACHE_DIR says. It compiles anew when the file of the task has changed, but does not
    look at other files, whose code is in there too; hence the digest in the name.
    """
    signature = "void(int64)"
    try:
        function.__qualname__ = f"{function.__name__}_{_sources_digest()}"
        return numba.cfunc(signature, cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as exc:
        logger.warning(
            "Compiled kernels cannot be kept on disk, so each start takes some seconds longer: %s "
            "Let NUMBA_CACHE_DIR name a folder that can be written to.",
            exc,
        )
        return numba.cfunc(signature, **OPTIONS)(function)


def _sources_digest() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _find_parallel() -> Any:
    """Return GOMP_parallel of the OpenMP library that torch runs on; None if there is none.

    Which one that is, the dynamic linker decides as it did for torch: what the process has loaded for
    all to see comes first (LD_PRELOAD too), then what torch's library itself asks for.
    """
    if not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return None
    own = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for library in (None, str(own)):
        try:
            parallel = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        # Function, its argument, number of threads, flags (GCC, libgomp/parallel.c).
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None
