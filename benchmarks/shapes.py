"""Models of a given size with random weights, made here: nothing is downloaded.

    python -m benchmarks.shapes 100m FOLDER

Writes an ordinary model folder, which POCQUEUE_MODEL takes. How fast a model runs depends on its shape
alone, not on what it has learnt. The same seed gives the same weights with one version of torch; they go
into no proof that anybody else would have to repeat.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen3Config

#: Noise of a matrix is repeated from a table with so many numbers: drawing them all anew would take most
#: of the time. An odd number, so that no two rows are alike.
_TABLE_SIZE = (1 << 22) + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3, of any size. Input and output embeddings are one table, as in the small ones."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_seq_len: int = 4096

    def config(self) -> PreTrainedConfig:
        """Return the configuration of transformers."""
        return Qwen3Config(
            architectures=["Qwen3ForCausalLM"],
            dtype=torch.bfloat16,
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_seq_len,
            num_attention_heads=self.num_heads,
            num_hidden_layers=self.num_layers,
            num_key_value_heads=self.num_kv_heads,
            tie_word_embeddings=True,
            vocab_size=self.vocab_size,
        )


SHAPES = {
    #: 100.1 million parameters, 24.6 of them in the embeddings; for a CPU.
    "100m": Shape(768, 12, 12, 4, 64, 2048, 32_000),
    #: Qwen3-0.6B's: 596 million parameters, 156 of them in the embeddings; for a GPU.
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151_936),
}


def write_model(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a model of this shape; leave a folder that has one alone.

    Args:
        shape: what to make.
        folder: for config.json and model.safetensors; made with all folders above it.
        seed: of the weights.

    Returns:
        The folder.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        config = shape.config()
        config.save_pretrained(scratch)
        weights = _weights(config, seed)
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _weights(config: PreTrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    """Make the weights by name, in bfloat16: norms are ones, a matrix keeps the size of what it is given."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(_TABLE_SIZE, generator=generator).to(torch.bfloat16)
    weights: dict[str, torch.Tensor] = {}
    # Each tensor once: the output layer is the embedding table.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            weights[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        weight = torch.empty(parameter.numel(), dtype=torch.bfloat16)
        start = int(torch.randint(_TABLE_SIZE, (1,), generator=generator))
        noise = torch.cat((table[start:], table[:start]))
        for first in range(0, weight.numel(), _TABLE_SIZE):
            part = weight[first : first + _TABLE_SIZE]
            part.copy_(noise[: part.numel()])
        scale = parameter.shape[-1] ** -0.5
        weights[name] = weight.mul_(scale).view(parameter.shape)
    return weights


def main() -> None:
    """Write one of the shapes."""
    parser = argparse.ArgumentParser(description="Write a model with random weights.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(write_model(SHAPES[given.shape], given.folder))


if __name__ == "__main__":
    main()
