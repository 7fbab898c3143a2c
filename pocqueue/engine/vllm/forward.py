"""A forward pass from embeddings inside a vLLM worker process, beside whatever the worker serves.

Promises:
- The served KV cache is neither read nor written. Attention backends of vLLM read keys and values
  back from paged blocks, so for the length of a pass every attention layer is bound to private
  scratch blocks, and to its own cache again afterwards, whatever happens. All layers share one
  scratch, as each has read its keys before the next one writes: a batch costs the memory of one
  layer's cache, not of all.
- One shape, one set of kernels, those of an eager vLLM: no CUDA graphs, no compiled graph (it was traced
  for token ids), no dependence on what was served before. So the same pass repeats bit for bit, and a
  served model gives what a vLLM of the worker's own gives.

Only what vLLM offers to its own model runners is used: attention groups and their metadata builders, the
forward context with `skip_compiled`, `compute_logits`. Both of its runners have it, in all versions that
`versions.py` allows; what differs between those stands there.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, SlidingWindowSpec

from pocqueue.engine.layers import behind_layers
from pocqueue.engine.vllm.kernels import EagerKernels
from pocqueue.engine.vllm.versions import has_tokens_third, keeps_each_token
from pocqueue.errors import EngineError
from pocqueue.poc.maths import AfterLayer, Output, TokenIds, no_token_ids

#: What layers may keep. Exactly these: classes that extend them (MLA, attention sinks, …) lay out their
#: blocks in other ways or write more into them than a pass should.
_SPECS = (FullAttentionSpec, SlidingWindowSpec)
#: Types of models whose first layers choose experts by token ids, and get some beside the embeddings.
_ROUTED_BY_IDS = {"deepseek_v4"}
#: How blocks of one layer look, whatever their number: shape, strides' order and dtype of a block.
_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class _Shape:
    """What a pass of one shape needs beside its inputs: sequences end to end, in scratch blocks of their own."""

    def __init__(self, batch: int, seq_len: int, device: torch.device) -> None:
        self.batch, self.seq_len, self._device = batch, seq_len, device
        #: int64 [batch * seq_len]: 0 … seq_len-1, again and again
        self.positions = torch.arange(seq_len, device=device).repeat(batch)
        #: int32 [batch + 1], on the host and on the device
        self.starts_cpu = torch.arange(0, batch * seq_len + 1, seq_len, dtype=torch.int32)
        self.starts = self.starts_cpu.to(device)
        #: int32 [batch], all seq_len
        self.lengths_cpu = torch.full((batch,), seq_len, dtype=torch.int32)
        self.lengths = self.lengths_cpu.to(device)
        self._tables: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._scratch: dict[_Layout, torch.Tensor] = {}

    def table(self, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return block table int32 [batch, blocks] and slot mapping int64 [batch * seq_len]."""
        if block_size not in self._tables:
            num_blocks = -(-self.seq_len // block_size)
            # From 1: block 0 is "no block" to some backends.
            table = 1 + torch.arange(self.batch * num_blocks, device=self._device)
            table = table.view(self.batch, num_blocks)
            offsets = torch.arange(block_size, device=self._device)
            slots = (table.unsqueeze(-1) * block_size + offsets).view(self.batch, -1)
            slot_mapping = slots[:, : self.seq_len].reshape(-1).contiguous()
            self._tables[block_size] = (table.to(torch.int32), slot_mapping)
        return self._tables[block_size]

    def scratch(self, cache: torch.Tensor) -> torch.Tensor:
        """Return blocks [1 + batch * blocks, …] laid out in memory as those of a layer's own cache."""
        order = tuple(sorted(range(cache.dim()), key=cache.stride, reverse=True))
        layout = (tuple(cache.shape[1:]), order, cache.dtype)
        if layout not in self._scratch:
            table, slots = self.table(cache.shape[2])
            size = (1 + table.numel(), *cache.shape[1:])
            # Zeros, because a masked key still enters a product: 0 times NaN would be NaN.
            made = torch.zeros([size[dim] for dim in order], dtype=cache.dtype, device=cache.device)
            scratch = made.permute([order.index(dim) for dim in range(len(order))])
            # A slot outside would be somebody else's memory; no kernel checks that.
            assert int(slots.max()) < scratch.shape[0] * scratch.shape[2]
            self._scratch[layout] = scratch
        return self._scratch[layout]


class VllmForward:
    """The model of one vLLM worker as a function from embeddings to what a proof reads of it.

    Call it from the thread that the worker computes in, between two of its steps.

    Args:
        model_runner: of the worker; either of vLLM's two.
        vllm_config: of the worker.
        device: the worker's.

    Attributes:
        held: what is kept for a next pass of the same shape; None: nothing.
        takes_token_ids: whether the model gets token ids beside the embeddings.

    Raises:
        EngineError: vLLM runs this model in a way that the proof cannot be computed in; says which.
    """

    def __init__(self, model_runner: Any, vllm_config: Any, device: torch.device) -> None:
        self._runner = model_runner
        self._config = vllm_config
        self._device = device
        self._layers: dict[str, Any] = vllm_config.compilation_config.static_forward_context
        self.held: _Shape | None = None
        config = vllm_config.model_config.hf_config
        self.takes_token_ids = getattr(config, "model_type", None) in _ROUTED_BY_IDS
        self._kernels = EagerKernels(model_runner.get_model(), vllm_config)
        reasons = unsupported(vllm_config) + self._unsupported_layers()
        if reasons:
            raise EngineError(
                f"vLLM serves this model in a way that proofs cannot be made with: {'; '.join(reasons)}."
            )

    @torch.inference_mode()
    def run(
        self,
        inputs: torch.Tensor,
        output: Output = "logits",
        after_layer: AfterLayer | None = None,
        token_ids: TokenIds = no_token_ids,
    ) -> torch.Tensor | None:
        """Run the model on embeddings.

        Args:
            inputs: [batch, seq_len, hidden] in the model's dtype, on its device.
            output: what is wanted of each sequence's last position.
            after_layer: what is done behind each decoder layer.
            token_ids: makes ids [batch, seq_len]; called if this is a model that routes by them.

        Returns:
            That, [batch, vocab] or [batch, hidden]; None for logits on a rank of a tensor-parallel group to
            which they are not gathered.
        """
        batch, seq_len, hidden_size = inputs.shape
        if self.held is None or (self.held.batch, self.held.seq_len) != (batch, seq_len):
            self.held = None  # frees its scratch first
            self.held = _Shape(batch, seq_len, self._device)
        shape = self.held
        # What the worker was doing on the device may still use buffers of the metadata builders. Between
        # two batches of a round there is nothing to wait for but this one's inputs, if at all.
        torch.accelerator.synchronize()
        metadata, slots, caches = self._attention(shape)
        ids = token_ids() if self.takes_token_ids else None
        own = {name: self._layers[name].kv_cache for name in caches}
        model = self._runner.get_model()
        try:
            for name, cache in caches.items():
                self._layers[name].kv_cache = cache
            with (
                self._kernels.active(),
                behind_layers(model, after_layer),
                set_forward_context(
                    metadata,
                    self._config,
                    num_tokens=batch * seq_len,
                    slot_mapping=slots,
                    skip_compiled=True,
                ),
            ):
                answer = model(
                    input_ids=None if ids is None else ids.view(-1),
                    positions=shape.positions,
                    inputs_embeds=inputs.view(batch * seq_len, hidden_size),
                )
                # Models whose inner states a drafter reads answer with those as well.
                hidden = answer[0] if isinstance(answer, tuple) else answer
                last = hidden.view(batch, seq_len, -1)[:, -1].contiguous()
                found: torch.Tensor | None = (
                    last if output == "hidden" else model.compute_logits(last)
                )
        finally:
            for name, cache in own.items():
                self._layers[name].kv_cache = cache
        return found

    def release(self) -> None:
        """Free the scratch; the next pass makes it again."""
        self.held = None

    def _attention(
        self, shape: _Shape
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return, by layer, the backend's metadata, the slot mapping and the scratch to bind."""
        metadata: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        caches: dict[str, torch.Tensor] = {}
        for group in self._groups():
            cache = self._layers[group.layer_names[0]].kv_cache
            # [blocks, …, tokens, …] to every layer (see `_unsupported_layers`), in whatever order in memory.
            table, slot_mapping = shape.table(cache.shape[2])
            common = CommonAttentionMetadata(
                query_start_loc=shape.starts,
                query_start_loc_cpu=shape.starts_cpu,
                seq_lens=shape.lengths,
                seq_lens_cpu_upper_bound=shape.lengths_cpu,
                num_reqs=shape.batch,
                num_actual_tokens=shape.batch * shape.seq_len,
                max_query_len=shape.seq_len,
                max_seq_len=shape.seq_len,
                block_table_tensor=table,
                slot_mapping=slot_mapping,
                positions=shape.positions,
                is_prefilling=torch.ones(shape.batch, dtype=torch.bool),
            )
            # Not through the group: it would map blocks of the manager to smaller ones of the kernel,
            # and the scratch is in the kernel's blocks already.
            built = group.get_metadata_builder().build(0, common)
            for name in group.layer_names:
                metadata[name] = built
                slots[name] = slot_mapping
                caches[name] = shape.scratch(self._layers[name].kv_cache)
        return metadata, slots, caches

    def _groups(self) -> list[Any]:
        return [group for groups in self._runner.attn_groups for group in groups]

    def _unsupported_layers(self) -> list[str]:
        """Name what is special about the model's layers and has to be computed in another way."""
        reasons = set()
        grouped = set()
        for group in self._groups():
            spec = group.kv_cache_spec
            grouped.update(group.layer_names)
            cache = self._layers[group.layer_names[0]].kv_cache
            if type(spec) not in _SPECS:
                reasons.add(f"it has layers of kind {type(spec).__name__}")
            elif (
                spec.kv_quant_mode != KVQuantMode.NONE
                or not keeps_each_token(spec)
                or not has_tokens_third(group.backend, spec, cache)
            ):
                reasons.add("its KV cache is compressed, quantised or laid out in another way")
        for name, layer in self._layers.items():
            if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
                reasons.add("its layers share keys and values")
            elif name not in grouped and hasattr(layer, "kv_cache"):
                reasons.add(f"layer {name}, of a draft model perhaps, is in no attention group")
        return sorted(reasons)


def unsupported(vllm_config: Any) -> list[str]:
    """Name the options of a vLLM engine with which it computes something else than the model's files.

    Returns:
        One short phrase each, with the option to change; empty if all is well.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    cache_dtypes = {"auto", str(model.dtype).removeprefix("torch.")}
    # Options of this vLLM; one that another build does not have cannot be set either.
    weights_change = getattr(vllm_config, "weight_transfer_config", None) is not None
    checks = {
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
        "--data-parallel-size above 1": parallel.data_parallel_size > 1,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "--enable-eplb": bool(getattr(parallel, "enable_eplb", False)),
        "--enable-lora": vllm_config.lora_config is not None,
        "--enable-sleep-mode": bool(getattr(model, "enable_sleep_mode", False)),
        "weights that are transferred while it serves": weights_change,
        "--load-format dummy": str(vllm_config.load_config.load_format) == "dummy",
        "--hf-overrides": bool(model.hf_overrides),
        "--hf-config-path": bool(getattr(model, "hf_config_path", None)),
        "another model class than the files name": bool(
            getattr(model, "model_class_overrides", None)
        ),
        "weights from elsewhere than the model's folder": bool(
            getattr(model, "model_weights", None)
        ),
        # What is in the model's own files is part of its fingerprint; what is added is not.
        "--quantization of weights that are not quantised": model.quantization is not None
        and getattr(model.hf_config, "quantization_config", None) is None,
        f"--kv-cache-dtype {vllm_config.cache_config.cache_dtype}": (
            vllm_config.cache_config.cache_dtype not in cache_dtypes
        ),
        # Their numbers depend on --max-model-len.
        "LongRoPE, or Llama 4's attention scaling": _depends_on_max_len(model.hf_config),
        # They mix what they keep of requests into embeddings.
        "a multimodal model": bool(model.is_multimodal_model) or bool(model.uses_mrope),
        "an encoder-decoder or pooling model": model.is_encoder_decoder
        or model.runner_type != "generate",
    }
    return [what for what, found in checks.items() if found]


def _depends_on_max_len(hf_config: Any) -> bool:
    config = hf_config.to_dict()
    return "longrope" in json.dumps(config, default=str) or "llama4" in str(
        config.get("model_type")
    )
