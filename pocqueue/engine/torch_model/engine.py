"""The torch engine: a transformers causal language model behind the engine protocol."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from typing_extensions import override

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.engine.layers import behind_layers
from pocqueue.engine.pipeline import Pipeline
from pocqueue.engine.stages import StageTimer
from pocqueue.errors import EngineError
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels import Kernels
from pocqueue.poc.maths import AfterLayer, Output, TokenIds, no_token_ids


class TorchEngine(Engine):
    """A transformers model as a function from batches to values.

    Not safe for several threads: callers hold a lock around each call.

    A value repeats bit for bit and its bits depend on neither number nor values of the other
    nonces. In float32 the place in the batch may move the last bit (2.4e-7 at most was seen, with
    AVX2 matrix kernels, which treat the last rows of a block apart; none in bfloat16).
    """

    def __init__(self, model: Any, info: EngineInfo, kernels: Kernels | None = None) -> None:
        """Take over a loaded model.

        Args:
            model: a causal language model of transformers in eval mode, on ``info.device``.
            info: what it is.
            kernels: the proof's maths; None: what is best on the device.
        """
        self._model: Any = model
        self.info = info
        self._pipeline = Pipeline(info, torch.device(info.device), model.dtype, kernels)
        # Without it a model computes logits of every position; the last one is taken either way.
        takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if takes_keep else {}

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        values = self._pipeline.values(batch, self.forward, upcoming)
        assert values is not None  # only ranks of a group give none
        return values

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        output: Output = "logits",
        after_layer: AfterLayer | None = None,
        _token_ids: TokenIds = no_token_ids,
    ) -> torch.Tensor:
        """Run the model: causal attention, no padding mask, no cache, and embeddings alone.

        Args:
            inputs: embeddings [batch, seq_len, hidden] in the model's dtype, on its device.
            output: what is wanted of the last position.
            after_layer: what is done behind each decoder layer.

        Returns:
            That, float32 [batch, vocab] or [batch, hidden].

        Raises:
            EngineError: the engine is closed.
        """
        model = self._open_model()
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        given = {"inputs_embeds": inputs, "position_ids": positions, "use_cache": False}
        found: torch.Tensor
        with behind_layers(model, after_layer):
            if output == "hidden":
                found = model.base_model(**given).last_hidden_state
            else:
                found = model(**given, **self._last_only).logits
        return found[:, -1, :].float()

    @override
    def timer(self) -> StageTimer:
        return StageTimer(self._pipeline, self.forward, self._open_model())

    @override
    def close(self) -> None:
        self._model = None
        self._pipeline.close()
        if self._pipeline.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open_model(self) -> Any:
        if self._model is None:
            raise EngineError("This engine is closed; load the model again.")
        return self._model
