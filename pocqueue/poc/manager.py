"""A round on a model in this process, by the names of the reference implementation.

Nothing of the product uses it: workers search with an engine (`workers/range_runner.py`), a served vLLM
with its prover (`served/prover.py`). It is what code that was written against the reference finds, for one
thread, one blocking forward pass at a time.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig, PoCState, PoCStats
from pocqueue.poc.data import ProofBatch, is_valid
from pocqueue.poc.gpu_random import generate_inputs, generate_target, logits_to_distances
from pocqueue.poc.nonces import check_node, nonces_of, split

if TYPE_CHECKING:
    from pocqueue.poc.sender import PoCCallbackSender

__all__ = ["PoCManager", "PoCStats"]


class ModelConfig(Protocol):
    """What has to be known of a model's configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class PoCManager:
    """One round at a time.

    Args:
        model: called as ``model(input_ids=None, positions=…, inputs_embeds=…)``, the tokens of all
            nonces end to end: positions int64 ``[tokens]``, embeddings ``[tokens, hidden]``; answers
            hidden states ``[tokens, hidden]``. Logits come from its ``compute_logits(hidden_states)``,
            with ``sampling_metadata=None`` if it has that parameter, or from its ``lm_head``. Its first
            parameter tells device and dtype.
        model_config: of the model.
    """

    def __init__(self, model: Any, model_config: ModelConfig) -> None:
        self.model = model
        self.model_config = model_config
        # Taken once: some models hand out an iterator that cannot be started again.
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self._dtype: torch.dtype = parameter.dtype
        self.state = PoCState.IDLE
        self.config: PoCConfig | None = None  #: the round; None before the first
        #: float32 ``[vocab_size]`` on the model's device; None before the first round
        self.target: torch.Tensor | None = None
        self.stats = PoCStats()
        self.valid_nonces: list[int] = []  #: all valid nonces of the round, in the order found
        self.valid_distances: list[float] = []
        self._next_index = 0
        self._sender: PoCCallbackSender | None = None

    def init_round(self, config: PoCConfig) -> None:
        """Set up a round and its target, without starting it. The round before is forgotten.

        Raises:
            RuntimeError: a round is being searched; stop it first.
            InvalidRound: node, batch size, sequence length or callback URL cannot be. Nothing changes.
        """
        check_node(config.node_id, config.node_count)
        for name in ("batch_size", "seq_len"):
            if getattr(config, name) < 1:
                raise InvalidRound(name, getattr(config, name), "an integer of at least 1")
        if self.state == PoCState.GENERATING:
            raise RuntimeError("Round already in progress")
        sender = None
        if config.callback_url:
            # Imported when it is needed: most managers send no callbacks, and aiohttp is not small.
            from pocqueue.poc.sender import PoCCallbackSender

            sender = PoCCallbackSender(config.callback_url, config.r_target, config.fraud_threshold)
        self._sender = sender
        self.target = generate_target(config.block_hash, self.model_config.vocab_size, self.device)
        self.config = config
        self.stats = PoCStats(start_time=time.time())
        self.valid_nonces = []
        self.valid_distances = []
        self._next_index = 0
        self.state = PoCState.IDLE

    def start_generate(self) -> None:
        """Start or resume searching.

        Raises:
            RuntimeError: there is no round.
        """
        self._round()
        self.state = PoCState.GENERATING
        self.stats.resume()

    def start_validate(self) -> None:
        """Stop searching and switch to validating.

        Raises:
            RuntimeError: there is no round.
        """
        self._round()
        self.state = PoCState.VALIDATING
        self.stats.stop()

    def stop_round(self) -> None:
        """Stop searching and the clock."""
        self.stats.stop()
        self.state = PoCState.STOPPED

    def get_next_nonces(self) -> list[int]:
        """Take the next `batch_size` nonces of this node; each is handed out once per round.

        Raises:
            RuntimeError: there is no round.
            InvalidRound: the node's nonces are used up, at 2^63.
        """
        config = self._round()
        stop = self._next_index + config.batch_size
        nonces = nonces_of(self._next_index, stop, config.node_id, config.node_count)
        self._next_index = stop
        return list(nonces)

    def run_batch(self) -> ProofBatch:
        """Search the next batch of nonces, blocking for one forward pass. Sends no callback.

        Returns:
            All nonces of the batch with their distances, valid or not, but for distances that are not
            finite. Empty unless a round is being searched.
        """
        if self.state != PoCState.GENERATING:
            return ProofBatch.empty()
        config = self._round()
        nonces = self.get_next_nonces()
        every = ProofBatch(
            public_key=config.public_key,
            block_hash=config.block_hash,
            block_height=config.block_height,
            nonces=nonces,
            dist=self._distances(config, config.public_key, nonces),
            node_id=config.node_id,
        )
        batch = every.sub_batch(math.inf)  # without what is not finite
        valid = batch.sub_batch(config.r_target)
        self.stats.total_checked += len(nonces)
        self.stats.total_nonfinite += len(nonces) - len(batch)
        self.stats.total_valid += len(valid)
        self.valid_nonces += valid.nonces
        self.valid_distances += valid.dist
        return batch

    async def run_batch_async(self) -> ProofBatch:
        """Do as `run_batch`, and queue the valid nonces for the round's callback URL."""
        batch = self.run_batch()
        if self._sender is not None and len(batch) > 0:
            await self._sender.send_generated(batch)
        return batch

    async def close(self) -> None:
        """Stop the round, and wait until the callbacks that are queued are sent or given up."""
        self.stop_round()
        if self._sender is not None:
            await self._sender.close()

    def validate(self, nonces: list[int], public_key: str) -> tuple[list[float], list[bool]]:
        """Recompute the distances of nonces for the round's block, blocking until done.

        Args:
            nonces: any number of them.
            public_key: whose nonces they are, which need not be the round's own key.

        Returns:
            The distance of each nonce, and whether it is valid. NaN and infinities are not.

        Raises:
            RuntimeError: there is no round.
        """
        config = self._round("No round configured")
        distances = self._distances(config, public_key, nonces)
        return distances, [is_valid(distance, config.r_target) for distance in distances]

    def get_status(self) -> dict[str, Any]:
        """Return state and results as JSON-ready values; the lists are copies."""
        return {
            "state": self.state.value,
            "valid_nonces": list(self.valid_nonces),
            "valid_distances": list(self.valid_distances),
            "total_checked": self.stats.total_checked,
            "total_valid": self.stats.total_valid,
            "elapsed_seconds": self.stats.elapsed,
            "rate_per_second": self.stats.rate,
        }

    def _round(self, missing: str = "Round not initialized") -> PoCConfig:
        if self.config is None:
            raise RuntimeError(missing)
        return self.config

    def _distances(self, config: PoCConfig, public_key: str, nonces: Sequence[int]) -> list[float]:
        """Compute distances in passes of one shape: docs/protocol.md says why short ones are filled up."""
        assert self.target is not None
        distances: list[float] = []
        # A thread starts on the first GPU, whichever one the model is on.
        on_cuda = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_cuda else nullcontext(), torch.inference_mode():
            for wanted in map(list, split(nonces, config.batch_size)):
                batch = wanted + wanted[-1:] * (config.batch_size - len(wanted))
                logits = self._last_logits(config, public_key, batch)
                names = (config.block_hash, public_key, batch)
                computed = logits_to_distances(*names, logits, self.target)
                distances += computed[: len(wanted)].tolist()
        return distances

    def _last_logits(self, config: PoCConfig, public_key: str, nonces: list[int]) -> torch.Tensor:
        """Run one pass; return the logits of each nonce's last token, ``[batch, vocab_size]``."""
        hidden_size, seq_len = self.model_config.hidden_size, config.seq_len
        inputs_embeds = generate_inputs(
            config.block_hash, public_key, nonces, hidden_size, seq_len, self.device, self._dtype
        )
        hidden_states = self.model(
            input_ids=None,
            positions=torch.arange(seq_len, device=self.device).repeat(len(nonces)),
            inputs_embeds=inputs_embeds.view(-1, hidden_size),
        )
        last_hidden = hidden_states.reshape(len(nonces), seq_len, -1)[:, -1, :]
        head = getattr(self.model, "compute_logits", None) or getattr(self.model, "lm_head", None)
        if head is None:
            raise RuntimeError("Model does not have compute_logits or lm_head")
        # vLLM had this argument, without a default, and has it no more.
        is_old = "sampling_metadata" in inspect.signature(head).parameters
        logits: torch.Tensor = head(last_hidden, **({"sampling_metadata": None} if is_old else {}))
        return logits
