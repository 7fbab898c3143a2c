"""What pocqueue adds to each worker process of vLLM: distances of nonces on the model that it has.

Named on the command line of an unmodified server, ``--worker-extension-cls
pocqueue.engine.vllm_worker.PoCWorker``, and called by method name through ``collective_rpc``. Plain
values go in and out: block hash, public key and nonces in, distances out. Every rank of a
tensor-parallel group makes the inputs for itself, so nothing else crosses between processes.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo, attention_shape
from pocqueue.engine.proof_maths import ProofMaths
from pocqueue.engine.vllm_forward import VllmForward
from pocqueue.errors import PocqueueError
from pocqueue.poc.config import PoCConfig

logger = logging.getLogger("vllm.pocqueue")


class PoCWorker:
    """Mixed into vLLM's worker class, which has ``model_runner``, ``vllm_config`` and ``device``."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    _poc_forward: VllmForward | None = None
    _poc_maths: ProofMaths | None = None

    def poc_describe(self) -> dict[str, Any]:
        """Say what is deployed, all but its fingerprint, and how large a batch may be."""
        try:
            self._poc_ready()
        except PocqueueError as exc:
            return {"error": str(exc)}
        scheduler = self.vllm_config.scheduler_config
        # Mixtures of experts have buffers for as many tokens as the server batches.
        is_moe = bool(self.vllm_config.model_config.is_moe)
        return {
            "info": vllm_info(self.vllm_config, self.device).to_dict(),
            "max_batch_size": int(scheduler.max_num_seqs),
            "max_tokens": int(scheduler.max_num_batched_tokens) if is_moe else None,
        }

    def poc_distances(
        self, block_hash: str, public_key: str, nonces: list[int], batch_size: int, seq_len: int
    ) -> dict[str, Any]:
        """Compute the distances of one batch in a pass of the shape [batch_size, seq_len].

        Returns:
            ``distances``: one a nonce, NaN where the logits were not finite; None on ranks that do not
            get the logits. Or ``error``, in one sentence.
        """
        config = PoCConfig(
            block_hash=block_hash,
            block_height=0,
            public_key=public_key,
            r_target=2.0,
            batch_size=batch_size,
            seq_len=seq_len,
        )
        try:
            forward, maths = self._poc_ready()
            return {"distances": maths.distances(config, nonces, forward.logits)}
        except PocqueueError as exc:
            return {"error": str(exc)}
        except Exception as exc:
            logger.exception("A batch of the proof failed")
            first_line = (str(exc).strip().splitlines() or [""])[0]
            return {"error": f"The engine failed: {type(exc).__name__}: {first_line[:300]}"}

    def poc_release(self) -> None:
        """Free what is held between two batches of a round."""
        if self._poc_forward is not None:
            self._poc_forward.release()
        if self._poc_maths is not None:
            self._poc_maths.forget()

    def _poc_ready(self) -> tuple[VllmForward, ProofMaths]:
        if self._poc_forward is None or self._poc_maths is None:
            self._poc_forward = VllmForward(self.model_runner, self.vllm_config, self.device)
            info = vllm_info(self.vllm_config, self.device)
            self._poc_maths = ProofMaths(info, self.device, self.vllm_config.model_config.dtype)
        return self._poc_forward, self._poc_maths


def vllm_info(vllm_config: Any, device: torch.device) -> EngineInfo:
    """Describe a model as vLLM runs it; the fingerprint is for whoever knows its files."""
    from pocqueue.engine.devices import device_name

    model = vllm_config.model_config
    size = vllm_config.parallel_config.tensor_parallel_size
    name = str(device) if device.type == "cpu" else f"cuda:{device.index or 0}"
    return EngineInfo(
        engine="vllm",
        model=str(model.model),
        fingerprint="",
        device=name,
        device_name=device_name(name) + (f", {size} tensor-parallel ranks" if size > 1 else ""),
        dtype=str(model.dtype).removeprefix("torch."),
        hidden_size=int(model.get_hidden_size()),
        vocab_size=int(model.get_vocab_size()),
        max_seq_len=int(model.max_model_len),
        tensor_parallel=int(size),
        **attention_shape(getattr(model, "hf_text_config", None)),
    )
