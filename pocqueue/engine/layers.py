"""The decoder layers of a model, and what a proof does behind each of them for the length of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pocqueue.poc.maths import AfterLayer

#: Where models of transformers and vLLM keep their decoder layers; the first that is there counts. Other places
#: are left alone on purpose: which models have layers behind which a proof reflects is part of the protocol.
_PLACES = ("model.layers", "transformer.h", "layers")


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers of a model in their order; none if they are not where the protocol looks."""
    for place in _PLACES:
        found: Any = model
        for name in place.split("."):
            found = getattr(found, name, None)
        if isinstance(found, torch.nn.ModuleList):
            return list(found)
    return []


@contextmanager
def behind_layers(model: torch.nn.Module, after_layer: AfterLayer | None) -> Iterator[None]:
    """Put `after_layer` behind each decoder layer, the last one too, until the block ends.

    Of a layer that answers with a tuple the first two tensors, activation and residual stream, are replaced; other
    passes of the model, before and after, know nothing of it.

    Args:
        model: of transformers or vLLM.
        after_layer: None: nothing is done.
    """
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder_layers(model) if after_layer else ()):

            def hook(_module: Any, _given: Any, output: Any, index: int = index) -> Any:
                assert after_layer is not None
                if not isinstance(output, tuple):
                    return after_layer(index, output)
                changed = [after_layer(index, x) for x in output[:2] if isinstance(x, torch.Tensor)]
                return (*changed, *output[len(changed) :])

            hooks.callback(layer.register_forward_hook(hook).remove)
        yield
