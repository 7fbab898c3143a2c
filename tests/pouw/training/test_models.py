"""Models are what their names say, as torch's own modules have them."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pocqueue.pouw.slots.weights import first_weights
from pocqueue.pouw.training.models import Model, fixed_arithmetic
from tests.pouw.training.in_step import task_of


def _dense(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _modules(architecture: str) -> nn.Module:
    if architecture == "MLP":
        return nn.Sequential(*_dense(64, 128, 64, 10))
    if architecture == "BAG":
        return nn.Sequential(
            nn.EmbeddingBag(4096, 32, mode="mean", padding_idx=0), *_dense(32, 32, 2)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        *_dense(512, 64, 10),
    )


@pytest.mark.parametrize("architecture", ["MLP", "CNN", "BAG"])
def test_gradients_are_those_of_modules(architecture: str) -> None:
    """The same weights in torch's modules have the same loss, gradient and answers."""
    model = Model(task_of(architecture))
    weights = first_weights(model.task)
    rows = np.arange(64)
    gradient, loss = model.gradient(weights, rows)
    judge = _modules(architecture)
    nn.utils.vector_to_parameters(torch.tensor(weights), judge.parameters())
    train, val = model.samples.train, model.samples.val
    expected = nn.CrossEntropyLoss()(judge(torch.tensor(train.x[:64])), torch.tensor(train.y[:64]))
    expected.backward()
    flat = torch.cat(
        [tensor.grad.flatten() for tensor in judge.parameters() if tensor.grad is not None]
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, flat.numpy(), atol=1e-6)
    answers = judge(torch.tensor(val.x)).argmax(1).numpy()
    assert model.correct(weights, val) == (answers == val.y).sum()


def test_the_callers_settings_come_back() -> None:
    """Threads and determinism are torch's own again behind the block."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    with fixed_arithmetic():
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_child_has_no_compiler() -> None:
    """Of torch it holds what it computes with: the compiler that comes with some settings is 70 MB a node."""
    code = """
import sys
import numpy as np
from pocqueue.pouw.slots.weights import first_weights
from pocqueue.pouw.training import child
from tests.pouw.training.in_step import task_of
with child.fixed_arithmetic():
    model = child.Model(task_of("MLP"))
    model.gradient(first_weights(model.task), np.arange(64))
print(*({"torch._dynamo", "torch._inductor", "sympy"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
