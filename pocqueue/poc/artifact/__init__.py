"""The artifact scheme: for every nonce a short vector of the model's last hidden state, rotated by the nonce.

The maths by its names, on torch tensors; docs/protocol.md states it in words. Importing this package imports
no torch: a name does when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocqueue.poc.artifact.vectors import (
        artifact_vectors,
        decode_vector,
        encode_vector,
        haar_vectors,
        is_mismatch,
        judge,
        layer_vectors,
        pick_dims,
        pseudo_input_ids,
        reflect,
    )
    from pocqueue.poc.gpu_random import generate_inputs

__all__ = [
    "artifact_vectors",
    "decode_vector",
    "encode_vector",
    "generate_inputs",
    "haar_vectors",
    "is_mismatch",
    "judge",
    "layer_vectors",
    "pick_dims",
    "pseudo_input_ids",
    "reflect",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no {name}")
    folder = "gpu_random" if name == "generate_inputs" else "artifact.vectors"
    return getattr(import_module(f"pocqueue.poc.{folder}"), name)
