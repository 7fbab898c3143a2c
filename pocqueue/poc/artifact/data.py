"""An artifact as it travels: k_dim float16, little-endian, in base64; and how two of them are compared.

Plain Python and numpy, without torch.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from pocqueue.poc.proofs import Proofs
from pocqueue.poc.search import SearchBody

#: float32 [k_dim].
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

_FLOAT16 = np.dtype("<f2")


def encode(vectors: Any) -> list[str]:
    """Return each of several vectors, numbers ``[n, k_dim]``, rounded to float16 (ties to even) as base64 text."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(vectors, np.float32).astype(_FLOAT16)
    size = rounded.itemsize * rounded.shape[1]
    raw = rounded.tobytes()
    return [
        binascii.b2a_base64(raw[start : start + size], newline=False).decode("ascii")
        for start in range(0, len(raw), size)
    ]


def decode(text: str) -> Vector:
    """Return the float32 ``[k_dim]`` that `encode` has rounded.

    Raises:
        ValueError: the text is not base64 of a whole number of float16.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), _FLOAT16).astype(np.float32)
    except (binascii.Error, ValueError) as exc:
        raise ValueError(
            f"vector_b64 is {text[:80]!r}; allowed: base64 of float16 numbers, two bytes each."
        ) from exc


def distance(computed_b64: str, received_b64: str, k_dim: int) -> float | None:
    """Return the 2-norm of the difference of two artifacts, computed in float32.

    None: one of them cannot be read, has not k_dim numbers, or has one that is not finite.
    """
    try:
        computed, received = decode(computed_b64), decode(received_b64)
    except ValueError:
        return None
    if len(computed) != k_dim or len(received) != k_dim:
        return None
    found = float(np.linalg.norm(computed - received))
    return found if np.isfinite(found) else None


def encoding(k_dim: int) -> dict[str, Any]:
    """Return how vectors are written."""
    return {"dtype": "f16", "k_dim": k_dim, "endian": "le"}


def artifacts_of(proofs: Proofs) -> list[dict[str, Any]]:
    """Return artifacts as they are listed."""
    return [{"nonce": nonce, "vector_b64": vector} for nonce, vector in proofs]


def generated_body(
    search: SearchBody, proofs: Proofs, k_dim: int, request_id: str | None = None
) -> dict[str, Any]:
    """Return the body of a POST to ``{url}/generated``.

    Args:
        search: whose artifacts.
        proofs: nonces and artifacts, as text.
        k_dim: of the artifacts.
        request_id: of the request that asked for these nonces; None: a round did not ask for any in particular.
    """
    return {
        **names(search),
        "artifacts": artifacts_of(proofs),
        "encoding": encoding(k_dim),
        **({} if request_id is None else {"request_id": request_id}),
    }


def names(search: SearchBody) -> dict[str, Any]:
    """Return the fields by which a receiver knows whose artifacts, or verdict, something is."""
    return {
        "public_key": search.public_key,
        "block_hash": search.block_hash,
        "block_height": search.block_height,
        "node_id": search.node_id,
    }
