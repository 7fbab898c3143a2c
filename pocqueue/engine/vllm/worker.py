"""What pocqueue adds to each worker process of vLLM: values of nonces on the model that it has.

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
from pocqueue.engine.pipeline import ProofMaths
from pocqueue.engine.stages import StageTimer, count_matmul_parameters
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

    def poc_values(self, batch: list[Any], upcoming: list[Any] | None = None) -> dict[str, Any]:
        """Compute the values of one batch in a pass of its shape.

        Args:
            batch: from ``Batch.to_wire``, within the limits of ``poc_describe``.
            upcoming: the same of the batch that is expected next; see ``Engine.values``.

        Returns:
            ``values``: one a nonce; None on ranks that do not get the logits. Or ``error``, in one
            sentence.
        """

        def values() -> dict[str, Any]:
            forward, maths = self._poc_ready()
            following = None if upcoming is None else Batch.from_wire(upcoming)
            return {"values": maths.values(Batch.from_wire(batch), forward.logits, following)}

        return self._poc_answer(values)

    def poc_time_stages(self, batch: list[Any], num_batches: int) -> dict[str, Any]:
        """Return ``stages``, median seconds by name (see ``StageTimer``), or ``error``.

        Args:
            batch: from ``Batch.to_wire``.
            num_batches: >= 1.
        """
        return self._poc_answer(
            lambda: {"stages": self._poc_timer().time_stages(Batch.from_wire(batch), num_batches)}
        )

    def poc_time_forward(self, batch: list[Any], num_batches: int) -> dict[str, Any]:
        """Return ``seconds`` of so many passes alone, or ``error``; see ``poc_time_stages``."""
        return self._poc_answer(
            lambda: {"seconds": self._poc_timer().time_forward(Batch.from_wire(batch), num_batches)}
        )

    def poc_count_parameters(self) -> dict[str, Any]:
        """Return ``parameters`` of this rank's part: fields of ``MatmulParameters``, or None; or ``error``."""

        def count() -> dict[str, Any]:
            info = vllm_info(self.vllm_config, self.device)
            counted = count_matmul_parameters(self.model_runner.get_model(), info)
            return {"parameters": None if counted is None else asdict(counted)}

        return self._poc_answer(count)

    def poc_release(self) -> None:
        """Free what is held between two batches of a round."""
        if self._poc_forward is not None:
            self._poc_forward.release()
        if self._poc_maths is not None:
            self._poc_maths.forget()

    def _poc_answer(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the work returns; its failure as a value (see ``rank_answers.py``)."""
        try:
            return work()
        except PocqueueError as exc:
            return {"error": str(exc)}
        except Exception as exc:
            logger.exception("A batch of the proof failed")
            return {"error": f"The engine failed: {first_line(exc)}"}

    def _poc_timer(self) -> StageTimer:
        forward, maths = self._poc_ready()
        # The buffers of a batch would be held beside the timer's.
        maths.forget()
        info = vllm_info(self.vllm_config, self.device)
        return StageTimer(info, self.vllm_config.model_config.dtype, self.device, forward.logits)

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
