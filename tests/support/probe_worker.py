"""A worker extension that looks at what `PoCWorker` does, from inside vLLM's worker."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.kv_cache_interface import MLAAttentionSpec

from pocqueue.engine.vllm.forward import VllmForward, _Shape, unsupported
from pocqueue.engine.vllm.worker import PoCWorker
from pocqueue.errors import EngineError
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.batch import Batch

#: Parts of vLLM's configuration, a field of each, and a value with which no proof can be made.
UNSUPPORTED: list[tuple[str, str, Any]] = [
    ("parallel_config", "pipeline_parallel_size", 2),
    ("parallel_config", "data_parallel_size", 2),
    ("parallel_config", "decode_context_parallel_size", 2),
    ("parallel_config", "enable_eplb", True),
    ("model_config", "enable_sleep_mode", True),
    ("load_config", "load_format", "dummy"),
    ("model_config", "hf_overrides", {"rope_theta": 1.0}),
    ("model_config", "hf_config_path", "/elsewhere"),
    ("model_config", "quantization", "fp8"),
    ("cache_config", "cache_dtype", "fp8"),
    ("model_config", "runner_type", "pooling"),
    ("model_config", "model_weights", "s3://elsewhere"),
]


class ProbeWorker(PoCWorker):
    """`PoCWorker`, and questions."""

    def probe_served_cache(self, batch_size: int, seq_len: int) -> dict[str, bool]:
        """Fill the served caches with a pattern, run a pass, and say what became of them."""
        layers = self.vllm_config.compilation_config.static_forward_context
        caches = {name: layer.kv_cache for name, layer in layers.items()}
        for cache in caches.values():
            cache.fill_(1.5)
        self.poc_values(Batch("block", "key", (0, 1), batch_size, seq_len).to_wire())
        unchanged = all(bool((cache == 1.5).all()) for cache in caches.values())
        bound = all(layers[name].kv_cache is cache for name, cache in caches.items())
        forward = self._poc_forward
        assert forward is not None
        scratch_held = forward.held is not None
        self.poc_release()
        released = forward.held is None
        for cache in caches.values():
            cache.zero_()
        return {
            "unchanged": unchanged,
            "bound_again": bound,
            "scratch_held": scratch_held,
            "released": released,
        }

    def probe_unsupported(self) -> dict[str, list[str]]:
        """Change one thing at a time of the configuration, and say what is said against it."""
        found = {"nothing": unsupported(self.vllm_config)}
        for part, field, value in UNSUPPORTED:
            config = copy.copy(self.vllm_config)
            changed = copy.copy(getattr(config, part))
            object.__setattr__(changed, field, value)
            object.__setattr__(config, part, changed)
            found[f"{part}.{field}"] = unsupported(config)
        return found

    def probe_other_layers(self) -> str:
        """Say what is said to a model of which one layer keeps keys and values as MLA does."""
        [[group]] = self.model_runner.attn_groups
        spec = group.kv_cache_spec
        latent = MLAAttentionSpec(
            block_size=spec.block_size,
            num_kv_heads=1,
            head_size=spec.head_size,
            dtype=spec.dtype,
        )
        runner = SimpleNamespace(
            get_model=self.model_runner.get_model,
            attn_groups=[[dataclasses.replace(group, kv_cache_spec=latent)]],
        )
        try:
            VllmForward(runner, self.vllm_config, self.device)
        except EngineError as exc:
            return str(exc)
        return "nothing"

    def probe_token_ids(self) -> dict[str, Any]:
        """Say what a model gets as token ids: this one, and one that routes by them."""
        model, given = self.model_runner.get_model(), []

        class Asking:
            """The model, as DeepSeek-V4 would stand in its place; notes the token ids."""

            def __call__(self, input_ids: torch.Tensor | None, **kwargs: Any) -> Any:
                given.append(None if input_ids is None else input_ids.tolist())
                return model(input_ids=None, **kwargs)

            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

        runner = SimpleNamespace(get_model=Asking, attn_groups=self.model_runner.attn_groups)
        hf_config = copy.copy(self.vllm_config.model_config.hf_config)
        hf_config.model_type = "deepseek_v4"
        changed = copy.copy(self.vllm_config.model_config)
        changed.hf_config = hf_config
        config = copy.copy(self.vllm_config)
        config.model_config = changed
        options = Artifact().options
        batch = Batch("block", "key", (0, 1), 2, 16, Artifact.name, options)
        values = [
            self._poc_pipeline.values(batch, VllmForward(runner, some, self.device).run)
            for some in (self.vllm_config, config)
        ]
        own = self._poc_pipeline.values(batch, self._poc_forward.run)
        return {"given": given, "values": [*values, own]}

    def probe_scratch(self) -> dict[str, tuple[int, ...]]:
        """Return shape and strides of scratch for a cache as vLLM 0.25 has it on CUDA, heads before tokens in memory."""
        cache = torch.zeros(5, 2, 4, 16, 8).transpose(2, 3)
        scratch = _Shape(3, 40, torch.device("cpu")).scratch(cache)
        return {"shape": tuple(scratch.shape), "strides": scratch.stride()}

    def probe_failure(self) -> list[Any]:
        """Return what a rank answers where the model raises, and afterwards."""
        model = self.model_runner.get_model()
        model.compute_logits = None
        batch = Batch("block", "key", (0,), 4, 16).to_wire()
        failed = self.poc_values(batch)
        del model.compute_logits
        return [failed, self.poc_values(batch)]

    def probe_infinite(self, is_infinite: bool) -> None:
        """Have one logit of each nonce infinite, as one infinite weight of the last layer makes it, or no more."""
        model = self.model_runner.get_model()
        if not is_infinite:
            del model.compute_logits  # its class has it
            return
        compute_logits = model.compute_logits

        def infinite(*args: Any) -> torch.Tensor | None:
            logits: torch.Tensor | None = compute_logits(*args)
            if logits is not None:  # a rank that gets them
                logits[:, 5] = math.inf
            return logits

        model.compute_logits = infinite
