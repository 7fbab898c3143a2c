"""The artifact's maths for many nonces at a time, on the device that its kernels are for.

Judged by `reference.py`, nonce by nonce. Nonces are 0 … 2^31 - 1, one for each row. docs/protocol.md states all of
it in words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pocqueue.poc.artifact import data
from pocqueue.poc.artifact.reference import reflect as reflect
from pocqueue.poc.artifact.seeds import layer_seeds, pick_seeds, rotation_seeds, token_seeds
from pocqueue.poc.fraud import fraud_test
from pocqueue.poc.kernels import Kernels, kernels_for
from pocqueue.poc.kernels.reference import hash


def pick_dims(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    hidden_size: int,
    k_dim: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Choose the dimensions of each nonce: those with the k_dim smallest hashes.

    Returns:
        int64 ``[len(nonces), k_dim]`` on `device`: ascending, but that the one with the largest hash of them
        stands last.

    Raises:
        InvalidRound: k_dim is not in 1 … hidden_size.
    """
    seeds = pick_seeds(block_hash, public_key, nonces, k_dim)
    return kernels_for(device).pick(seeds, hidden_size, k_dim)


def haar_vectors(
    block_hash: str,
    public_key: str,
    nonce: int,
    k_dim: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Make the vectors of the reflections that a nonce's rotation consists of.

    Returns:
        float32 ``[k_dim - 1, k_dim]`` on `device`, of norm 1, in the order in which they are applied.
    """
    seeds = rotation_seeds(block_hash, public_key, [nonce], k_dim)
    return unit_vectors(kernels_for(device), seeds, k_dim, device)


def layer_vectors(
    block_hash: str, num_layers: int, hidden_size: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Make the vector of the reflection behind each decoder layer.

    Returns:
        float32 ``[num_layers, hidden_size]`` on `device`, of norm 1.
    """
    seeds = layer_seeds(block_hash, range(num_layers))
    return unit_vectors(kernels_for(device), seeds, hidden_size, device)


def unit_vectors(
    kernels: Kernels, seeds: Sequence[int], n: int, device: torch.device | str
) -> torch.Tensor:
    """Make normal numbers, float32 ``[len(seeds), n]`` on `device`, and divide each row by its norm."""
    vectors = torch.empty(len(seeds), n, dtype=torch.float32, device=device)
    if len(seeds):
        kernels.write_inputs(seeds, vectors)
    return vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True))


def pseudo_input_ids(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    seq_len: int,
    vocab_size: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Make the token ids that stand beside the embeddings where a model routes by them (DeepSeek-V4).

    Returns:
        int32 ``[len(nonces), seq_len]`` on `device`, in 0 … vocab_size - 1.
    """
    ids = torch.empty(len(nonces), seq_len, dtype=torch.int32, device=device)
    for row, seed in zip(ids, token_seeds(block_hash, public_key, nonces), strict=True):
        row.copy_((hash(seed, seq_len, device).to(torch.int64) & 0xFFFFFFFF) % vocab_size)
    return ids


def artifact_vectors(
    hidden: torch.Tensor, block_hash: str, public_key: str, nonces: Sequence[int], k_dim: int
) -> torch.Tensor:
    """Turn the last hidden states of nonces into their artifacts, before these are rounded.

    Args:
        hidden: any float ``[len(nonces), hidden_size]``, of the last position behind the final norm; used as
            float32, unchanged.

    Returns:
        float32 ``[len(nonces), k_dim]`` on the device of `hidden`, of norm 1; NaN where a hidden state is not finite.

    Raises:
        InvalidRound: k_dim is not in 1 … hidden_size, or there is not one hidden state for each nonce.
    """
    names, kernels = (block_hash, public_key, nonces), kernels_for(hidden.device)
    dims = pick_dims(*names, hidden.shape[1], k_dim, hidden.device)
    steps = unit_vectors(kernels, rotation_seeds(*names, k_dim), k_dim, hidden.device)
    return kernels.rotated(hidden, dims, steps.view(len(nonces), k_dim - 1, k_dim))


def encode_vector(vector: torch.Tensor) -> str:
    """Return an artifact as it travels: rounded to float16, little-endian, in base64.

    Args:
        vector: any float ``[k_dim]``, on any device.
    """
    return data.encode(vector.to("cpu", torch.float32).numpy()[None])[0]


def decode_vector(text: str) -> torch.Tensor:
    """Return an artifact that travelled as float32 ``[k_dim]``.

    Raises:
        ValueError: the text is not base64 of a whole number of float16.
    """
    return torch.from_numpy(data.decode(text))


def is_mismatch(
    computed: torch.Tensor, received_b64: str, dist_threshold: float, k_dim: int
) -> bool:
    """Say whether a received artifact is too far from the one that we computed.

    Args:
        computed: any float ``[k_dim]``; rounded as the received one was.
        received_b64: as it travelled. What cannot be read, has not k_dim numbers or one that is not finite is a
            mismatch.
        dist_threshold: largest 2-norm of the difference that is none; >= 0.
    """
    found = data.distance(encode_vector(computed), received_b64, k_dim)
    return found is None or found > dist_threshold


def judge(
    n_total: int, n_mismatch: int, p_mismatch: float, fraud_threshold: float
) -> tuple[float, bool]:
    """Test whether that many mismatches can be float error.

    Args:
        n_total: nonces compared; >= 0.
        n_mismatch: of these, how many are mismatches; 0 … n_total.
        p_mismatch: chance of an honest nonce to be one; (0, 1).
        fraud_threshold: it is fraud if the p-value is below this; (0, 1).

    Returns:
        p_value, P(X >= n_mismatch) for X ~ B(n_total, p_mismatch), and whether it is fraud. No nonces: (1.0, False).

    Raises:
        ValueError: `n_mismatch` is negative or above `n_total`.
    """
    return fraud_test(n_mismatch, n_total, fraud_threshold, p_mismatch)
