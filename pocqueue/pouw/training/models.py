"""The models by name, as functions of flat weights: MLP, CNN, BAG (embedding bag and dense layers).

Their layers are `slots.task.TaskSpec.parameters`. Everything is float32 on the CPU within `fixed_arithmetic`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pocqueue.pouw.data.parts import Part
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import Weights
from pocqueue.pouw.training.samples import Samples, load
from pocqueue.pouw.wire.slots import MAX_PARTS


@contextlib.contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """Within the block torch computes as verifiers expect: one thread, float32 in full, deterministic.

    With two threads sums come out in other bits. Other instruction sets still differ, which is why
    re-execution has a margin (`reexecute`).
    """
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
    )
    torch.set_num_threads(1)
    # `use_deterministic_algorithms` does the same and imports a compiler for it, with 70 MB and a second of a core.
    torch.set_deterministic_debug_mode("error")
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.set_float32_matmul_precision(before[2])


class Model:
    """A task's model with its data.

    Args:
        task: has been checked.
        samples: of the client's own data; None: those that are built in.
    """

    def __init__(self, task: TaskSpec, samples: Samples | None = None) -> None:
        self.task = task
        self.samples = load(task.data) if samples is None else samples
        self._shapes = [parameter.shape for parameter in task.parameters]
        self._sizes = [parameter.size for parameter in task.parameters]

    def gradient(self, weights: Weights, rows: npt.NDArray[np.int64]) -> tuple[Weights, float]:
        """Return the gradient of the mean loss over some training samples, and that loss.

        Args:
            weights: float32 ``[num_weights]``; not changed.
            rows: int64 ``[samples]`` of the training part.

        Returns:
            float32 ``[num_weights]``, and the cross-entropy in nats.
        """
        train = self.samples.train
        theta = torch.from_numpy(weights.copy()).requires_grad_()
        logits = self._logits(theta, torch.from_numpy(train.x[rows]))
        loss = functional.cross_entropy(logits, torch.from_numpy(train.y[rows]))
        (gradient,) = torch.autograd.grad(loss, theta)
        return gradient.numpy(), float(loss.detach())

    def correct(self, weights: Weights, part: Part) -> int:
        """Return how many samples of a part the model is right about."""
        # Not all at once: a task's bounds are those of its mini-batches.
        size = self.task.batch_size * MAX_PARTS
        with torch.inference_mode():
            theta = torch.from_numpy(weights.copy())
            pieces = zip(
                torch.split(torch.from_numpy(part.x), size),
                torch.split(torch.from_numpy(part.y), size),
                strict=True,
            )
            return sum(int((self._logits(theta, x).argmax(1) == y).sum()) for x, y in pieces)

    def _logits(self, theta: Tensor, x: Tensor) -> Tensor:
        # One split: its backward pass is one concatenation, that of a slice is a whole vector each.
        pieces = zip(torch.split(theta, self._sizes), self._shapes, strict=True)
        tensors = iter([piece.view(shape) for piece, shape in pieces])
        if self.task.architecture == "CNN":
            x = _convolutions(x, tensors, self.task.data_shape.side)
        elif self.task.architecture == "BAG":
            # Indices in 4 bytes, as files may have them, would be looked up just the same; the bags are one kind here.
            x = functional.embedding_bag(x.long(), next(tensors), mode="mean", padding_idx=0)
        return _dense(x, list(tensors))


def _convolutions(x: Tensor, tensors: Iterator[Tensor], side: int) -> Tensor:
    x = x.view(-1, 1, side, side)
    x = functional.conv2d(x, next(tensors), next(tensors), padding=1).relu()
    x = functional.max_pool2d(x, 2)
    x = functional.conv2d(x, next(tensors), next(tensors), padding=1).relu()
    return x.flatten(1)


def _dense(x: Tensor, tensors: list[Tensor]) -> Tensor:
    """Return the logits: layers with a ReLU between them."""
    layers = list(zip(tensors[::2], tensors[1::2], strict=True))
    for weight, bias in layers[:-1]:
        x = functional.linear(x, weight, bias).relu()
    weight, bias = layers[-1]
    return functional.linear(x, weight, bias)
