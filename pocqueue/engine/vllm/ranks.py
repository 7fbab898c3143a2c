"""What the ranks of a vLLM engine answer to a call, in plain values; see ``worker.py``.

    poc_describe   -> {"info": {fields of EngineInfo}, "max_batch_size": int, "max_tokens": int | null}
    poc_values     -> {"values": [one a nonce] | null}; null on ranks that do not get the logits
    poc_time             -> {"answer": seconds, by stage or of all}
    poc_count_parameters -> {"answer": {fields of MatmulParameters} | null}, of the rank's part
    poc_release          -> {}
    any                  -> {"error": sentence} if it cannot be done, and "too_large": true if it would fit into
                            more memory

Failures are values: a rank that raises leaves the answers of the others in vLLM's queues, and the next
call, a step of inference perhaps, would take them for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.engine.profiled import MatmulParameters
from pocqueue.errors import EngineError, InvalidRound, PassTooLarge
from pocqueue.poc.batch import Batch


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What an engine can run at most, beside the model's own limit of positions."""

    max_batch_size: int  #: sequences of one pass; attention backends have buffers for that many
    max_tokens: int | None = None  #: batch size times sequence length; None: memory decides

    def of(self, info: EngineInfo) -> EngineInfo:
        """Return what is deployed, with these limits."""
        return replace(
            info, max_pass_nonces=self.max_batch_size, max_pass_tokens=self.max_tokens or 0
        )

    def check(self, info: EngineInfo, batch: Batch) -> None:
        """Refuse a batch that is beyond them.

        Raises:
            InvalidRound: names the field.
        """
        check_batch(info, batch, max_batch_size=self.max_batch_size)
        tokens = batch.batch_size * batch.seq_len
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise InvalidRound(
                "batch_size",
                batch.batch_size,
                f"at most {self.max_tokens // batch.seq_len} with seq_len {batch.seq_len}, as this model "
                f"takes {self.max_tokens} tokens at once (--max-num-batched-tokens)",
            )


def read_description(answers: Sequence[Any]) -> tuple[EngineInfo, BatchLimits]:
    """Read the ranks' answers to ``poc_describe``.

    Raises:
        EngineError: one of them says that it cannot make proofs, and why.
        ValueError: an answer is not what this version of pocqueue gives.
    """
    _raise_errors(answers)
    described = answers[0]
    if not isinstance(described, dict):
        raise ValueError(f"a rank described itself as {described!r}")
    limits = read_limits(described)
    return limits.of(EngineInfo.from_dict(described.get("info", {}))), limits


def read_limits(described: dict[str, Any]) -> BatchLimits:
    """Read the limits of a description.

    Raises:
        ValueError: they are missing.
    """
    size, tokens = described.get("max_batch_size"), described.get("max_tokens")
    if type(size) is not int or type(tokens) not in {int, type(None)}:
        raise ValueError(f"max_batch_size is {size!r} and max_tokens is {tokens!r}")
    return BatchLimits(size, tokens)


def read_values(answers: Sequence[Any], num_nonces: int) -> list[Any]:
    """Read the ranks' answers to ``poc_values``; every rank that has values has the same.

    Raises:
        EngineError: a rank failed, and says why; or none gave one value for each nonce.
    """
    _raise_errors(answers)
    for answer in answers:
        values = answer.get("values") if isinstance(answer, dict) else None
        if isinstance(values, list) and len(values) == num_nonces:
            return values
    raise EngineError(f"The engine failed: no rank gave values for {num_nonces} nonces.")


@dataclass(frozen=True)
class RankTimer:
    """Times the parts of a batch on every rank; see ``profiled.Timer``."""

    call: Callable[..., Sequence[Any]]  #: calls a method of the worker extension on every rank

    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        """Return median seconds by stage, each as long as the slowest rank takes."""
        ranks = self._ask("poc_time", "time_stages", batch.to_wire(), num_batches)
        return {stage: max(rank[stage] for rank in ranks) for stage in ranks[0]}

    def time_forward(self, batch: Batch, num_batches: int) -> float:
        """Return the seconds of so many passes, as long as the slowest rank takes."""
        return float(max(self._ask("poc_time", "time_forward", batch.to_wire(), num_batches)))

    def num_matmul_parameters(self) -> MatmulParameters | None:
        """Count the parameters that positions are multiplied with, those of all ranks together."""
        parts = [
            fields and MatmulParameters(**fields) for fields in self._ask("poc_count_parameters")
        ]
        if None in parts:
            return None
        # The output layer is counted whole by each.
        return replace(parts[0], per_token=sum(part.per_token for part in parts))

    def _ask(self, method: str, *args: Any) -> list[Any]:
        """Return what each rank answers.

        Raises:
            EngineError: a rank failed, and says why.
        """
        answers = self.call(method, *args)
        _raise_errors(answers)
        return [answer["answer"] for answer in answers]


def _raise_errors(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, dict) and "error" in answer:
            kind = PassTooLarge if answer.get("too_large") else EngineError
            raise kind(str(answer["error"]))
