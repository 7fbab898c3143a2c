"""The interface between rounds and deployed models: what an engine says about itself and what it does.

Imports neither torch nor any other model runtime, so the scheduler, the APIs and the CLI may use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pocqueue.errors import InvalidRound
from pocqueue.poc.batch import Batch

if TYPE_CHECKING:
    from pocqueue.engine.profiled import Timer

#: What an operator gives vLLM as ``--worker-extension-cls``; see ``vllm/worker.py``.
EXTENSION = "pocqueue.engine.vllm.worker.PoCWorker"

#: Receives one short line of text whenever loading a model gets on; called in the loading thread.
OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One way to run a model."""

    loader: str  #: function that loads it, as ``module:name``
    kernels: str  #: whose kernels compute it; engines that share them agree bit for bit
    is_remote: bool = False  #: model and devices belong to a server; this process has neither
    spreads: bool = False  #: takes several devices for one model
    package: str = ""  #: extra of pocqueue, and package, without which it cannot be loaded


KINDS = {
    "torch": EngineKind(
        loader="pocqueue.engine.torch_model.loader:load_torch_engine", kernels="torch"
    ),
    "vllm": EngineKind(
        loader="pocqueue.engine.vllm.engine:load_vllm_engine",
        kernels="vllm",
        spreads=True,
        package="vllm",
    ),
    "vllm-server": EngineKind(
        loader="pocqueue.engine.vllm.remote:connect_vllm_server", kernels="vllm", is_remote=True
    ),
}


def is_remote(engine: str) -> bool:
    """Say whether an engine of this name uses a model that a server has; not so for unknown ones."""
    return engine in KINDS and KINDS[engine].is_remote


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a worker tells the pool, and a round its proofs, about a deployed model."""

    engine: str  #: name in the registry of ``load_engine``, such as "torch"
    model: str  #: the name that the operator gave, or "embedded"
    fingerprint: str  #: 64 hex digits over configuration and weights, see ``fingerprint.py``
    device: str  #: "cpu" or "cuda:0"
    device_name: str  #: for people: name of the GPU, or of the processor with its number of threads
    dtype: str  #: of weights and activations: "bfloat16", "float16" or "float32"
    hidden_size: int  #: width of one input embedding
    vocab_size: int  #: number of logits
    max_seq_len: int  #: longest sequence in tokens that the model has positions for
    tensor_parallel: int = 1  #: devices that share the model
    num_layers: int = 0  #: transformer blocks; 0, here and below: not known
    num_heads: int = 0  #: attention heads of a block
    num_kv_heads: int = 0  #: of these, those that have keys and values of their own
    max_pass_nonces: int = 0  #: most nonces of one pass
    max_pass_tokens: int = 0  #: most tokens of one pass, batch size times sequence length

    @property
    def runtime(self) -> str:
        """Name what decides the last bits of a distance beside model and dtype: "torch", "vllm", "vllm-x2".

        The kernels, and over how many devices sums are split. Engines with different runtimes agree
        within float error, which puts more honest nonces on the other side of r_target than the fraud
        test allows for.
        """
        name = KINDS[self.engine].kernels if self.engine in KINDS else self.engine
        return f"{name}-x{self.tensor_parallel}" if self.tensor_parallel > 1 else name

    @property
    def is_remote(self) -> bool:
        """Whether a server has the model, and the process that says so neither model nor device."""
        return is_remote(self.engine)

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings and integers, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> EngineInfo:
        """Build the information from what ``to_dict`` gave, perhaps in another process.

        Args:
            data: the fields by name. Others are ignored, so that workers of two versions overlap.

        Raises:
            ValueError: a field is missing or has another type; the message names it.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            # Annotations are strings here (``from __future__ import annotations``).
            wanted = int if field.type == "int" else str
            # Fields with a default came later than the first workers.
            value = data.get(field.name, None if field.default is MISSING else field.default)
            if type(value) is not wanted:  # bool is an int to isinstance
                raise ValueError(
                    f"engine information: {field.name} is {value!r}; wanted: {wanted.__name__}."
                )
            values[field.name] = value
        return cls(**values)


def attention_shape(config: Any) -> dict[str, int]:
    """Return the fields of ``EngineInfo`` that say how a model is built, from its configuration.

    Args:
        config: of the language part, as transformers has it; what it does not tell is 0.
    """
    return {
        "num_layers": first_int(config, "num_hidden_layers") or 0,
        "num_heads": first_int(config, "num_attention_heads") or 0,
        # Left out if every head has its own.
        "num_kv_heads": first_int(config, "num_key_value_heads", "num_attention_heads") or 0,
    }


def first_int(config: Any, *names: str) -> int | None:
    """Return the first of these that a configuration has as one whole number; some architectures have one a layer."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int), None)


class Engine(ABC):
    """A deployed model seen as a function from a batch to values.

    An engine is used by one thread at a time: callers that have several hold a lock around each call.

    Attributes:
        info: what is deployed here; the same for the engine's whole life.
    """

    info: EngineInfo

    @abstractmethod
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        """Compute what a proof keeps of each nonce, in one forward pass of fixed shape.

        The pass has the shape [batch_size, seq_len] however few nonces there are, so a nonce's value
        depends on neither the other nonces nor their number.

        Args:
            batch: what to compute; its proof scheme says what a value is.
            upcoming: what the next call will ask for, as far as the caller knows. An engine may prefetch
                its inputs and permutations while this batch is in the model; another next call is
                answered all the same.

        Returns:
            One JSON-ready value a nonce, in order. With scheme "distance" a float in [0, 2], or NaN if the
            model's logits were not finite (the caller drops those). Empty for no nonces.

        Raises:
            InvalidRound: ``seq_len`` is above the model's limit, there are too many nonces, or this engine
                cannot compute the scheme.
            PassTooLarge: the batch does not fit into the device's memory.
            EngineError: the engine is closed.
            EngineUnavailable: the server that has the model does not answer.
        """

    def warm_up(self, batch_size: int, seq_len: int) -> None:
        """Run one pass of this shape and drop the result, so that the first real one is not slow.

        Raises:
            InvalidRound, EngineError, EngineUnavailable: as `values` does.
        """
        self.values(Batch.warm_up(batch_size, seq_len))

    def timer(self) -> Timer | None:
        """Return what times the parts of a batch, for the engine's own thread; None: the model is elsewhere.

        Raises:
            EngineError: the engine is closed.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the model and its device memory. Calling it twice is fine."""


def largest_pass(info: EngineInfo, seq_len: int, most: int) -> int:
    """Return the most nonces, up to a number, that one pass of a model takes; at least 1, though that may not fit."""
    most = min(most, info.max_pass_nonces or most)
    if info.max_pass_tokens:
        most = min(most, info.max_pass_tokens // seq_len)
    return max(1, most)


def check_batch(info: EngineInfo, batch: Batch, max_batch_size: int | None = None) -> None:
    """Check what every engine has to refuse before it runs a batch.

    Args:
        info: the model.
        batch: what is asked for.
        max_batch_size: most sequences that the engine's buffers take; None: memory alone decides.

    Raises:
        InvalidRound: naming ``seq_len``, ``batch_size`` or ``nonces``.
    """
    if not 1 <= batch.seq_len <= info.max_seq_len:
        raise InvalidRound(
            "seq_len", batch.seq_len, f"1 to {info.max_seq_len}, the limit of model {info.model}"
        )
    max_batch_size = max_batch_size or info.max_pass_nonces
    if batch.batch_size < 1 or batch.batch_size > (max_batch_size or batch.batch_size):
        allowed = f"1 to {max_batch_size}" if max_batch_size else "1 or more"
        raise InvalidRound("batch_size", batch.batch_size, allowed)
    tokens = info.max_pass_tokens
    if 0 < tokens < batch.batch_size * batch.seq_len:
        why = f"as one pass of model {info.model} holds {tokens} tokens"
        if tokens < batch.seq_len:
            raise InvalidRound("seq_len", batch.seq_len, f"at most {tokens}, {why}")
        most = tokens // batch.seq_len
        raise InvalidRound(
            "batch_size", batch.batch_size, f"at most {most} with seq_len {batch.seq_len}, {why}"
        )
    if len(batch.nonces) > batch.batch_size:
        raise InvalidRound(
            "nonces",
            f"{len(batch.nonces)} of them",
            f"at most batch_size, here {batch.batch_size}",
        )
