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
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocqueue.errors import EngineError

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

    Any number of processes may call this at once: each writes a folder of its own and renames it
    into place, so a reader never sees half a model.

    Args:
        state_dir: pocqueue's state folder; the model goes to ``models/embedded-v1`` below it.

    Raises:
        EngineError: the folder cannot be written.
    """
    target = state_dir / "models" / VERSION
    files = _folder_files()
    if _holds(target, files):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic within one file system only.
        scratch = Path(tempfile.mkdtemp(prefix=f".{VERSION}-", dir=target.parent))
        try:
            fresh = scratch / "fresh"
            fresh.mkdir()
            for name, data in files.items():
                (fresh / name).write_bytes(data)
            _put_in_place(fresh, target, files, scratch / "damaged")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as exc:
        raise EngineError(
            f"The embedded model cannot be written to {target}: {exc.strerror or exc}. "
            "Choose a state folder that this user may write to."
        ) from exc
    return target


def _put_in_place(fresh: Path, target: Path, files: dict[str, bytes], damaged: Path) -> None:
    """Rename ``fresh`` to ``target``, moving a damaged folder out of the way to ``damaged``."""
    for last_try in (False, True):
        try:
            # On POSIX this replaces an empty folder and refuses one that has files.
            fresh.rename(target)
        except OSError:
            if _holds(target, files):  # another process was first, with the same bytes
                return
            if last_try:
                raise
            if target.exists():
                target.rename(damaged)
        else:
            return


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether the folder has exactly these files' bytes (others beside them do not matter)."""
    try:
        return all((folder / name).read_bytes() == data for name, data in files.items())
    except OSError:
        return False


def _folder_files() -> dict[str, bytes]:
    """Make the folder's files: name to contents, about 2 MB in all."""
    return {
        "config.json": (json.dumps(CONFIG, indent=2, sort_keys=True) + "\n").encode(),
        "model.safetensors": _safetensors({n: _tensor(n, s) for n, s in tensor_shapes().items()}),
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


def _tensor(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Make one weight as the bit patterns of bfloat16, shape ``shape``.

    Norms are ones. A matrix has mean 0 and standard deviation 1/sqrt(inputs): large enough that every
    layer moves the logits, so that a mistake in any of them shows in the distances.

    A value is the sum of four 16-bit integers (near enough to a normal distribution, cut at 3.46
    standard deviations), centred: an integer of at most 18 bits, exact in float32. One IEEE
    multiplication and one rounding to nearest even follow; both are the same on all hardware.
    """
    if len(shape) == 1:
        return _to_bfloat16(np.ones(shape, dtype=np.float32))
    count = math.prod(shape)
    stream = hashlib.shake_256(f"pocqueue-{VERSION}:{name}".encode()).digest(8 * count)
    words = np.frombuffer(stream, dtype="<u2").reshape(count, 4)
    centred = words.sum(axis=1, dtype=np.int32) - 2 * 65535
    # The sum of four uniform 16-bit integers has standard deviation 65536/sqrt(3), bar 1 part in 2^32.
    scale = np.float32(math.sqrt(3.0 / shape[1]) / 65536.0)
    return _to_bfloat16((centred.astype(np.float32) * scale).reshape(shape))


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even, as bit patterns."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _safetensors(tensors: dict[str, npt.NDArray[np.uint16]]) -> bytes:
    """Pack bfloat16 tensors into the safetensors format.

    8 bytes little-endian length of the header; the header, JSON padded with spaces to a multiple of 8;
    then the tensors' bytes, little-endian, at the offsets that the header names.
    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the format
    offset = 0
    for name, bits in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(bits.shape),
            "data_offsets": [offset, offset + bits.nbytes],
        }
        offset += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blobs = (bits.astype("<u2", copy=False).tobytes() for bits in tensors.values())
    return b"".join([struct.pack("<Q", len(text)), text, *blobs])
