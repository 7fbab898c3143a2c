"""What pocqueue adds to each worker process of vLLM: values of nonces on its model.

Named on the command line of an unmodified server, ``--worker-extension-cls
pocqueue.engine.vllm.worker.PoCWorker``, and called by method name through ``collective_rpc``. Plain
values go in and out: a batch in, what its proof keeps of each nonce out. Every rank of a
tensor-parallel group makes the inputs for itself, so nothing else crosses between processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo, attention_shape
from pocqueue.engine.devices import device_name
from pocqueue.engine.pipeline import Pipeline
from pocqueue.engine.stages import StageTimer
from pocqueue.engine.vllm.forward import VllmForward
from pocqueue.errors import PocqueueError, first_line
from pocqueue.poc.batch import Batch

logger = logging.getLogger("vllm.pocqueue")


class PoCWorker:
    """Mixed into vLLM's worker class, which has ``model_runner``, ``vllm_config`` and ``device``."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    _poc_forward: VllmForward | None = None
    _poc_pipeline: Pipeline | None = None

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

    def poc_values(self, batch: list[Any], upcoming: list[Any] | None = None) -> dict[str, Any]:
        """Compute the values of one batch in a pass of its shape.

        Args:
            batch: from ``Batch.to_wire``, within the limits of ``poc_describe``.
            upcoming: the same of the batch that is expected next; see ``Engine.values``.

        Returns:
            ``values``: one a nonce; None on ranks that do not get the logits. Or ``error``, in one
            sentence.
        """

        def values() -> Any:
            forward, pipeline = self._poc_ready()
            following = None if upcoming is None else Batch.from_wire(upcoming)
            return pipeline.values(Batch.from_wire(batch), forward.run, following)

        return self._poc_answer("values", values)

    def poc_time_stages(self, batch: list[Any], num_batches: int) -> dict[str, Any]:
        """Return median seconds by stage; see ``StageTimer``.

        Args:
            batch: from ``Batch.to_wire``.
            num_batches: >= 1.

        Returns:
            ``answer``, or ``error`` in one sentence.
        """
        return self._poc_answer(
            "answer", lambda: self._poc_timer().time_stages(Batch.from_wire(batch), num_batches)
        )

    def poc_time_forward(self, batch: list[Any], num_batches: int) -> dict[str, Any]:
        """Return the seconds of so many passes alone; see ``poc_time_stages``."""
        return self._poc_answer(
            "answer", lambda: self._poc_timer().time_forward(Batch.from_wire(batch), num_batches)
        )

    def poc_count_parameters(self) -> dict[str, Any]:
        """Return the fields of ``MatmulParameters`` of this rank's part, or None; see ``poc_time_stages``."""

        def count() -> dict[str, Any] | None:
            counted = self._poc_timer().num_matmul_parameters()
            return None if counted is None else asdict(counted)

        return self._poc_answer("answer", count)

    def poc_release(self) -> None:
        """Free what is held between two batches of a round."""
        if self._poc_forward is not None:
            self._poc_forward.release()
        if self._poc_pipeline is not None:
            self._poc_pipeline.forget()

    def _poc_answer(self, name: str, work: Callable[[], Any]) -> dict[str, Any]:
        """Return what the work returns, by this name; its failure as a value (see ``ranks.py``)."""
        try:
            return {name: work()}
        except PocqueueError as exc:
            return {"error": str(exc)}
        except Exception as exc:
            logger.exception("A batch of the proof failed")
            return {"error": f"The engine failed: {first_line(exc)}"}

    def _poc_timer(self) -> StageTimer:
        forward, pipeline = self._poc_ready()
        return StageTimer(pipeline, forward.run, self.model_runner.get_model())

    def _poc_ready(self) -> tuple[VllmForward, Pipeline]:
        if self._poc_forward is None or self._poc_pipeline is None:
            self._poc_forward = VllmForward(self.model_runner, self.vllm_config, self.device)
            info = vllm_info(self.vllm_config, self.device)
            self._poc_pipeline = Pipeline(info, self.device, self.vllm_config.model_config.dtype)
        return self._poc_forward, self._poc_pipeline


def vllm_info(vllm_config: Any, device: torch.device) -> EngineInfo:
    """Describe a model as vLLM runs it; the fingerprint is added by the caller, which knows its files."""
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
