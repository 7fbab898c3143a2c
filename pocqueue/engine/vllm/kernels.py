"""The kernels that an eager vLLM would run, for the length of a pass on a server that is not eager.

A server that compiles its graphs turns its hand-written kernels off, as the compiler fuses the plain
operations instead. The proof's pass is not compiled (see `forward.py`); left as it is, it would run
those plain operations one by one, slowly, and give other last bits than a vLLM of the worker's own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import vllm.ir
from vllm.config import CompilationMode
from vllm.model_executor.custom_op import CustomOp
from vllm.platforms import current_platform


class EagerKernels:
    """Which operations of a model run as which kernel in an eager pass.

    Args:
        model: as the worker has it.
        vllm_config: of the worker.
    """

    def __init__(self, model: Any, vllm_config: Any) -> None:
        compilation = vllm_config.compilation_config
        self._methods = [
            (op, method)
            for op in model.modules()
            if isinstance(op, CustomOp)
            and type(op).name in compilation.disabled_custom_ops
            # Turned off by name, for a reason that holds for the proof as well.
            and f"-{type(op).name}" not in compilation.custom_ops
            and (method := _device_method(op)) is not None
        ]
        eager = copy.copy(vllm_config)
        eager.compilation_config = copy.copy(compilation)
        eager.compilation_config.mode = CompilationMode.NONE
        self._priority = current_platform.get_default_ir_op_priority(eager)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Run operations as these kernels within the block, as before afterwards."""
        before = [(op, op._forward_method) for op, _method in self._methods]
        try:
            for op, method in self._methods:
                op._forward_method = method
            with self._priority.set_priority(), vllm.ir.enable_torch_wrap(False):
                yield
        finally:
            for op, method in before:
                op._forward_method = method


def _device_method(op: Any) -> Any:
    """Return what an operation that is turned on runs; None on platforms that were not looked at."""
    if current_platform.is_cpu():
        return op.forward_cpu
    if current_platform.is_cuda():
        return op.forward_cuda
    return None
