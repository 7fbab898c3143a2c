"""The embedded model: a Qwen3 of 1.05 M parameters that pocqueue makes itself, the same everywhere.

It is written once as an ordinary Hugging Face folder and from then on loaded like any other model.
The weights must have the same bytes on every machine, since the fingerprint goes into every proof, so
they come from SHAKE-256 through integers and one exactly rounded multiplication. No logarithm, sine
or random module is involved: those differ in the last bit between maths libraries, processors and
versions, and one such bit on the border of two bfloat16 values would be another model.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocqueue.errors import EngineError
from pocqueue.files import replace_file

if TYPE_CHECKING:
    import torch

#: The name by which operators ask for it.
EMBEDDED = "embedded"
#: Changes with any change to the configuration or the generator below; also the folder's name.
VERSION = "embedded-v1"
#: What ``fingerprint.fingerprint`` gives for the folder. A test holds the generator to it.
EMBEDDED_FINGERPRINT = "03696e98f7bf4af45343043d9207a35cf92376b3df7a3a4a5bddc499f4e5d4c3"

#: Input and output embeddings are not tied: proofs enter as embeddings, so tying saves memory only,
#: and separate ones bring the model to its 1 M parameters.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 4096,
    "max_window_layers": 4,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 1024,
}


def ensure_embedded_model(state_dir: Path) -> Path:
    """Make the embedded model's folder if it is missing or differs, and return it.

    Any number of processes may call this at once: each file is put in its place whole, and all of them
    would write the same bytes.

    Args:
        state_dir: pocqueue's state folder; the model goes to ``models/embedded-v1`` below it.

    Raises:
        EngineError: the folder cannot be written.
    """
    target = state_dir / "models" / VERSION
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in _folder_files().items():
            path = target / name
            if not path.is_file() or path.read_bytes() != data:
                replace_file(path, data, mode=0o644)
    except OSError as exc:
        raise EngineError(
            f"The embedded model cannot be written to {target}: {exc.strerror or exc}. "
            "Choose a state folder that this user may write to."
        ) from exc
    return target


def _folder_files() -> dict[str, bytes]:
    """Make the folder's files: name to contents, about 2 MB in all."""
    from safetensors.torch import save

    weights = {name: _tensor(name, shape) for name, shape in tensor_shapes().items()}
    return {
        "config.json": (json.dumps(CONFIG, indent=2, sort_keys=True) + "\n").encode(),
        # transformers asks for the format.
        "model.safetensors": save(weights, {"format": "pt"}),
    }


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """List the weights by the names that transformers gives them, with their shapes."""
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    head = CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}self_attn.k_proj.weight": (keys, hidden),
            f"{prefix}self_attn.v_proj.weight": (keys, hidden),
            f"{prefix}self_attn.q_norm.weight": (head,),
            f"{prefix}self_attn.k_norm.weight": (head,),
            f"{prefix}self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Make one weight, bfloat16 of this shape.

    Norms are ones. A matrix has mean 0 and standard deviation 1/sqrt(inputs): large enough that every
    layer moves the logits, so that a mistake in any of them shows in the distances.

    A value is the sum of four 16-bit integers (near enough to a normal distribution, cut at 3.46
    standard deviations), centred: an integer of at most 18 bits, exact in float32. One IEEE
    multiplication and one rounding to nearest even follow; both are the same on all hardware.
    """
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = math.prod(shape)
    stream = hashlib.shake_256(f"pocqueue-{VERSION}:{name}".encode()).digest(8 * count)
    words = np.frombuffer(stream, dtype="<u2").reshape(count, 4)
    centred = words.sum(axis=1, dtype=np.int32) - 2 * 65535
    # The sum of four uniform 16-bit integers has standard deviation 65536/sqrt(3), bar 1 part in 2^32.
    scale = np.float32(math.sqrt(3.0 / shape[1]) / 65536.0)
    values = (centred.astype(np.float32) * scale).reshape(shape)
    return torch.from_numpy(values).to(torch.bfloat16)
