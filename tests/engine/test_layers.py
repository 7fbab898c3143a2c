"""Where decoder layers are looked for, and what is replaced of their outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from pocqueue.engine.layers import behind_layers, decoder_layers


class _Layer(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    @override
    def forward(self) -> Any:
        return self.answer


def _body(*layers: nn.Module, name: str = "layers") -> nn.Module:
    body = nn.Module()
    setattr(body, name, nn.ModuleList(layers))
    return body


def _within(name: str, body: nn.Module) -> nn.Module:
    model = nn.Module()
    setattr(model, name, body)
    return model


def test_layers_are_looked_for_where_the_protocol_says() -> None:
    """And nowhere else: a multimodal model that keeps them elsewhere has none."""
    layers = [_Layer(1), _Layer(2)]
    assert decoder_layers(_within("model", _body(*layers))) == layers
    assert decoder_layers(_within("transformer", _body(*layers, name="h"))) == layers
    assert decoder_layers(_body(*layers)) == layers
    assert decoder_layers(_within("language_model", _within("model", _body(*layers)))) == []


def _run(answer: Any) -> Any:
    layer = _Layer(answer)
    with behind_layers(_body(_Layer(0.0), layer), lambda number, x: x + 10 * number):
        return layer()


@pytest.mark.parametrize("rest", [(), ("more",), (None, torch.zeros(1))])
def test_of_a_tuple_the_first_two_tensors_are_replaced(rest: tuple[Any, ...]) -> None:
    hidden, residual = torch.tensor(1.0), torch.tensor(2.0)
    found = _run((hidden, residual, *rest))
    assert [x.item() for x in found[:2]] == [11, 12]
    assert all(a is b for a, b in zip(found[2:], rest, strict=True))


def test_of_one_tensor_that_one_is_replaced() -> None:
    assert _run(torch.tensor(1.0)).item() == 11
    assert [x.item() for x in _run((torch.tensor(1.0),))] == [11]
    hidden, nothing = _run((torch.tensor(1.0), None))
    assert (hidden.item(), nothing) == (11, None)


def test_outside_the_very_same_object_comes_back() -> None:
    """After an error, too."""
    answer = (torch.tensor(1.0), torch.tensor(2.0))
    layer = _Layer(answer)
    with pytest.raises(RuntimeError), behind_layers(_body(layer), lambda _number, x: x):
        raise RuntimeError
    assert layer() is answer
    with behind_layers(_body(layer), None):
        assert layer() is answer
