"""What privacy costs a model: the digits trained with it and without, all else equal, by the share of right answers.

    python -m benchmarks.pouw_privacy

The order of docs/pouw.md: epsilon 12, three miners, 40 laps, mini-batches of 512, each miner's every message
certified, a layer of 32; without privacy with the architecture's own tau. Clipped gradients of all samples are made at once here; that they are those of `private_gradient`, which
makes them one by one, is checked on a first message.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample

if TYPE_CHECKING:
    import numpy.typing as npt

    from pocqueue.pouw.slots.task import Noise, TaskSpec
    from pocqueue.pouw.slots.weights import Weights
    from pocqueue.pouw.training.models import Model

_NUM_SEEDS = 3
_NUM_MINERS, _NUM_LAPS, _BATCH, _HIDDEN = 3, 40, 512, (32,)
_MULTIPLIER, _MAX_NORM, _TAU, _DELTA = 16.0, 1.0, 0.1, "1e-6"


def pouw_privacy(effort: Effort = FULL) -> list[Figure]:
    """Train both, for a few seeds; 20 s of a core."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.pouw_privacy"),
            *(str(effort.runs(_NUM_SEEDS)), str(effort.size(_NUM_LAPS))),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    private, plain = Sample(found["private"], "right"), Sample(found["plain"], "right")
    ratio = private.median / plain.median
    name = f"useful work: digits learned with epsilon {found['epsilon']:.1f}, MLP, {_NUM_LAPS} laps"
    return [
        Figure(name, private, plain, "the same without privacy", ratio, "nothing: a price", True)
    ]


def main(num_seeds: int = _NUM_SEEDS, num_laps: int = _NUM_LAPS) -> None:
    """Print one line of JSON: epsilon, and the shares of right answers by seed."""
    from decimal import Decimal

    from pocqueue.pouw.privacy import epsilon
    from pocqueue.pouw.slots.task import ARCHITECTURES, LAP, Noise, TaskSpec
    from pocqueue.pouw.training.models import fixed_arithmetic

    data, _, learning_rate, tau = ARCHITECTURES["MLP"]
    noise = Noise(_MULTIPLIER, _MAX_NORM, _NUM_MINERS)
    found: dict[str, Any] = {"private": [], "plain": []}
    num_messages = num_laps * LAP * _NUM_MINERS
    found["epsilon"] = float(epsilon(Decimal(_MULTIPLIER), num_messages, Decimal(_DELTA)))
    with fixed_arithmetic():
        for seed in range(num_seeds):
            for name, with_noise, its_tau in (("private", noise, _TAU), ("plain", None, tau)):
                task = TaskSpec(
                    bytes([seed]) * 32,
                    *("MLP", _HIDDEN, data, _BATCH, learning_rate, its_tau),
                    noise=with_noise,
                )
                found[name].append(_trained(task, num_laps))
    print(json.dumps(found), flush=True)


def _trained(task: TaskSpec, num_laps: int) -> float:
    """Train a task from its first weights; return the share of validation and test samples that it is right about."""
    from pocqueue.pouw.slots.task import LAP
    from pocqueue.pouw.slots.weights import first_weights, next_weights
    from pocqueue.pouw.training.iterate import signs_of, take_map
    from pocqueue.pouw.training.models import Model
    from pocqueue.pouw.training.private import private_gradient
    from pocqueue.pouw.training.samples import sample_rows

    model, weights = Model(task), first_weights(task)
    miners = [bytes([2, number]) + bytes(31) for number in range(_NUM_MINERS)]
    left: dict[bytes, Weights] = {}
    for slot in range(LAP * num_laps):
        if slot % LAP == 0:
            left = {}
        maps = []
        for miner in miners:
            rows = sample_rows(task, slot, miner, 0, 1)
            if task.noise is None:
                gradient, _ = model.gradient(weights, rows)
            else:
                signature = (miner + slot.to_bytes(4, "big")).ljust(96, b"s")
                gradient = _private(model, task.noise, weights, rows, signature)
                if not slot:
                    one_by_one = private_gradient(model, task.noise, weights, rows, signature)
                    assert np.allclose(gradient, one_by_one, atol=1e-6)
            gradient = gradient + left[miner] if miner in left else gradient
            maps.append(signs_of(task, gradient))
            take_map(task, gradient, maps[-1])
            left[miner] = gradient
        weights = next_weights(task, weights, maps)
    parts = (model.samples.val, model.samples.test)
    return sum(model.correct(weights, part) for part in parts) / sum(len(part.y) for part in parts)


def _private(
    model: Model, noise: Noise, weights: Weights, rows: npt.NDArray[np.int64], signature: bytes
) -> Weights:
    """Return what `private_gradient` does, of an MLP: a sample's gradient of a layer is the product of what goes in and
    what comes back, so its norm is to be had without it.
    """
    import torch
    from torch import Tensor
    from torch.nn import functional

    from pocqueue.pouw.training.private import normal

    chosen, train = np.unique(rows), model.samples.train
    task, at = model.task, torch.from_numpy(weights.copy())
    sizes = [parameter.size for parameter in task.parameters]
    tensors = [
        piece.view(parameter.shape)
        for piece, parameter in zip(torch.split(at, sizes), task.parameters, strict=True)
    ]
    layers = list(zip(tensors[::2], tensors[1::2], strict=True))
    x, inputs, outputs = torch.from_numpy(train.x[chosen]), list[Tensor](), list[Tensor]()
    for weight, bias in layers:
        inputs.append(x if not outputs else x.relu())
        x = functional.linear(inputs[-1], weight, bias).requires_grad_()
        outputs.append(x)
    loss = functional.cross_entropy(x, torch.from_numpy(train.y[chosen]), reduction="sum")
    back = torch.autograd.grad(loss, outputs)
    squares = sum(
        (out.double() ** 2).sum(1) * ((into.detach().double() ** 2).sum(1) + 1)
        for into, out in zip(inputs, back, strict=True)
    )
    assert isinstance(squares, Tensor)
    share = (noise.max_norm / squares.sqrt()).clamp(max=1.0)[:, None]
    clipped = [
        piece.flatten()
        for into, out in zip(inputs, back, strict=True)
        for scaled in (out.double() * share,)
        for piece in (scaled.T @ into.detach().double(), scaled.sum(0))
    ]
    total = torch.cat(clipped).numpy()
    total += normal(signature, len(weights)) * (noise.multiplier * noise.max_norm)
    assert math.isfinite(float(total @ total))
    found: Weights = (total / len(chosen)).astype(np.float32)
    return found


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
