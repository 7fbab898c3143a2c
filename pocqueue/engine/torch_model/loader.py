"""Loading a model from its folder into a torch engine: checks, progress, errors of one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from pocqueue.engine import EngineOptions
from pocqueue.engine.base import EngineInfo, OnProgress, attention_shape
from pocqueue.engine.devices import device_name, keep_freed_memory
from pocqueue.engine.models import ResolvedModel, fingerprint_with_progress, resolve_model
from pocqueue.engine.torch_model.engine import TorchEngine
from pocqueue.errors import EngineError, ModelNotFound, first_line

#: For models whose positions have no limit of their own (ALiBi, state-space models), in tokens.
_NO_LIMIT_SEQ_LEN = 1 << 20


def load_torch_engine(options: EngineOptions, on_progress: OnProgress) -> TorchEngine:
    """Load a model into an engine; arguments and errors are those of ``load_engine``."""
    return TorchEngine(*load_model(options, on_progress))


def load_model(options: EngineOptions, on_progress: OnProgress) -> tuple[Any, EngineInfo]:
    """Resolve, fingerprint and load a model; say what it is. As ``load_torch_engine``."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    device = options.device
    if device == "cpu":
        keep_freed_memory()
    resolved = resolve_model(options.model, options.state_dir, on_progress)
    digits = fingerprint_with_progress(resolved, on_progress)
    on_progress(f"Loading {resolved.display_name} on {device}")
    loaded = _load(resolved, device, getattr(torch, options.dtype, "auto"))
    config = loaded.config.get_text_config()  # of the language part, if a model has others
    info = EngineInfo(
        engine="torch",
        model=resolved.display_name,
        fingerprint=digits,
        device=device,
        device_name=device_name(device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        hidden_size=int(loaded.get_input_embeddings().weight.shape[1]),
        vocab_size=int(config.vocab_size),
        max_seq_len=int(getattr(config, "max_position_embeddings", None) or _NO_LIMIT_SEQ_LEN),
        **attention_shape(config),
    )
    on_progress(f"Loaded {info.model} on {device} ({info.device_name}) in {info.dtype}")
    return loaded, info


def _load(model: ResolvedModel, device: str, dtype: torch.dtype | str) -> Any:
    """Load the weights, all of them and no others.

    They go through the host's memory: loading straight onto a device needs one more package
    (accelerate), and safetensors are mapped, so little of it is held at once.
    """
    try:
        with _quiet_transformers():
            loaded, report = AutoModelForCausalLM.from_pretrained(
                model.path,
                dtype=dtype,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
            missing = sorted(report["missing_keys"])
            if missing:
                # transformers fills these with random numbers: another model at every start.
                raise ModelNotFound(
                    f"Model {model.display_name!r} lacks {len(missing)} of its weights, such as {missing[0]}. "
                    "Download it again, or name a model for text generation."
                )
            return loaded.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError as exc:
        raise EngineError(
            f"Model {model.display_name!r} does not fit into the memory of {device}. "
            "Use a smaller model, or a device with more memory."
        ) from exc
    except EngineError:
        raise
    except Exception as exc:
        # A folder from anywhere can go wrong in any way (validation, unpickling, shapes, quantisation
        # packages that are missing), and each has another class; all mean that it cannot be loaded.
        raise ModelNotFound(
            f"Model {model.display_name!r} cannot be loaded by transformers: "
            f"{first_line(exc)} Download it again, or name another model."
        ) from exc


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turn off transformers' own progress bars and advice while loading, and restore them after."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
