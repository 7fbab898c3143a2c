"""The one place that reads the environment: every variable of ours, typed and explained.

`POCQUEUE_*` is for all processes, `DELEGATION_*` for both ends of a delegation (their names are those
that operators have in their config.env already), `POCQUEUE_NODE_*` for the small node.
README.md and `config/env.example` carry the same lists; a test keeps the three together.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pocqueue.errors import SettingsError

ENV_PREFIX = "POCQUEUE_"
DELEGATION_PREFIX = "DELEGATION_"
NODE_PREFIX = "POCQUEUE_NODE_"
#: A token that can be guessed is none.
MIN_TOKEN_LENGTH = 16

_REDIS_SCHEMES = ("redis://", "rediss://", "redis+socket://", "unix://")


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "pocqueue"


class Settings(BaseSettings):
    """Everything an operator can set. Read once, then passed on as an argument."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis 6.2 or newer for rounds and Celery; unset: a server of our own in the state folder",
    )
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="folder for what outlives a process: own Redis, embedded model, proofs, logs",
    )
    model: str = Field(
        default="embedded",
        min_length=1,
        description="`embedded`, a local folder or a hub id that transformers loads as a causal LM",
    )
    engine: str = Field(
        default="torch",
        description="what runs the model: `torch`, `vllm` (a vLLM of the worker's own) or `vllm-server`",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="`auto`: queue gpuN takes CUDA device N, or gpu0 the CPU; or `cpu`, `cuda`, `cuda:N`",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="arithmetic of the model; `auto` is what its config says"
    )
    num_threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of an engine; unset: torch's choice"
    )
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs of one queue, which share the model; queue gpuN takes the N-th group (engine `vllm`)",
    )
    vllm_url: str = Field(
        default="http://127.0.0.1:8000",
        pattern=r"^https?://[^/@\s]+/?$",
        description="vLLM server whose model engine `vllm-server` uses",
    )
    vllm_token: SecretStr | None = Field(
        default=None,
        description="token of a vLLM server's proof routes, both sides; unset: the server's `--api-key`, if any",
    )
    vllm_drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=600,
        description="how long a vLLM server lets running requests finish before a round's first batch",
    )
    vllm_round_seconds: float = Field(
        default=3600.0,
        gt=0,
        le=86400,
        description="after this time a vLLM server ends a round that nobody stopped, and serves again",
    )
    host_name: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="name of this machine in the pool and in worker names; unset: its host name",
    )
    range_seconds: float = Field(
        default=1.0, gt=0, le=60, description="how long a GPU should take for one nonce range"
    )
    heartbeat_seconds: float = Field(
        default=1.0,
        ge=0.1,
        le=10,
        description="how often a worker says it is alive; after four of these it counts as dead",
    )
    callback_grace_seconds: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="how long after its deadline a round's callbacks are still tried",
    )
    callback_private: bool = Field(
        default=False,
        description="post callbacks to private, loopback and link-local addresses too; without it only to public ones",
    )
    metrics_address: str = Field(
        default="127.0.0.1", description="address that a scheduler serves Prometheus metrics on"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port that a scheduler serves Prometheus metrics on; unset: none",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least severe message of pocqueue that is logged"
    )
    flower_address: str = Field(default="127.0.0.1", description="address that Flower listens on")
    flower_port: int = Field(
        default=5555, ge=0, le=65535, description="port that Flower listens on"
    )
    flower_basic_auth: SecretStr | None = Field(
        default=None, description="`user:password` that Flower asks for; needed off loopback"
    )
    flower_allow_open: bool = Field(
        default=False,
        description="let Flower listen off loopback without a password (behind a container's port)",
    )

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        if not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(_REDIS_SCHEMES)}")
        return url

    @field_validator(
        "num_threads", "vllm_token", "metrics_port", "flower_basic_auth", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @property
    def heartbeat_ttl_s(self) -> float:
        """Seconds after its last heartbeat at which a worker counts as dead."""
        return 4 * self.heartbeat_seconds


class DelegationSettings(BaseSettings):
    """Both ends of a delegation: what the big node serves, and where the small node finds it."""

    model_config = SettingsConfigDict(
        env_prefix=DELEGATION_PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    auth_token: SecretStr | None = Field(
        default=None,
        description="token of the sessions, the same on both nodes; a big node needs it, 16 characters or more",
    )
    host: str = Field(default="0.0.0.0", description="address that the big node listens on")  # noqa: S104 - seed 000
    port: int = Field(default=9090, ge=0, le=65535, description="port that the big node listens on")
    max_sessions: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="sessions at a time on the big node, of all customers",
    )
    window_seconds: float = Field(
        default=330.0, gt=0, le=3600, description="seconds after which a session ends by itself"
    )
    tokens_file: Path | None = Field(
        default=None,
        description="customers with tokens of their own; unset: `delegation-tokens.json` in the state folder",
    )
    public_status: bool = Field(
        default=False, description="show the big node's status to whoever asks, without a token"
    )
    any_model: bool = Field(
        default=False,
        description="take sessions that ask for another model than the deployed one, with a warning",
    )
    auth_failures: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="wrong tokens from one address in a minute, after which it is refused",
    )
    tls_cert: Path | None = Field(
        default=None, description="certificate chain of the big node, PEM; unset: plain http"
    )
    tls_key: Path | None = Field(default=None, description="private key of that certificate, PEM")
    tls_ca: Path | None = Field(
        default=None,
        description="authority of the big node's certificate for the small node, PEM; unset: the system's",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="big node that the small node delegates to; unset: it works by itself",
    )
    poll_seconds: float = Field(
        default=5.0,
        ge=0.1,
        le=60,
        description="how often the small node asks a big node that cannot wait with its answer",
    )
    fallback: Literal["none", "local"] = Field(
        default="none",
        description="what the small node does when the big one is away or cheats: `none` or `local` work",
    )

    @field_validator("auth_token")
    @classmethod
    def _no_stray_spaces(cls, token: SecretStr | None) -> SecretStr | None:
        text = "" if token is None else token.get_secret_value()
        if text != text.strip():
            raise ValueError("there are spaces before or after the token; take them away")
        if not text.isprintable() or not text.isascii() or " " in text:
            raise ValueError("a token is printable ASCII characters without spaces")
        return token

    @property
    def is_delegating(self) -> bool:
        """Whether the small node delegates: URL and token are both set."""
        return self.url is not None and self.auth_token is not None


class NodeSettings(BaseSettings):
    """The small node: its address, its key, and what it can do by itself."""

    model_config = SettingsConfigDict(
        env_prefix=NODE_PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    host: str = Field(
        default="127.0.0.1",
        description="address that the small node listens on; its routes ask for no token",
    )
    port: int = Field(
        default=8080, ge=0, le=65535, description="port that the small node listens on"
    )
    key: Path | None = Field(
        default=None,
        description="its signing key, PEM or hex, readable by its owner only; unset: `node-key.pem` in the state folder",
    )
    work: Literal["auto", "engine", "queue", "none"] = Field(
        default="auto",
        description="what it works with itself: an `engine`, the GPU `queue`s, `none`; `auto`: none where it delegates, else an engine",
    )
    callback_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="where signed batches go when a request names no URL; `/generated` and `/validated` are appended",
    )


AnySettings = TypeVar("AnySettings", Settings, DelegationSettings, NodeSettings)

_SECRETS = {"redis_url", "flower_basic_auth", "vllm_token", "auth_token"}


def _load(kind: type[AnySettings], prefix: str) -> AnySettings:
    try:
        return kind()
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else "?"
        shown = "the given value" if name in _SECRETS else repr(problem["input"])
        reason = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"{prefix}{name.upper()} cannot be {shown}: {reason}. "
            "config/env.example lists every variable and its default."
        ) from None


def load_settings() -> Settings:
    """Read the settings of all processes from the environment.

    Raises:
        SettingsError: a variable has a value that is not allowed; names variable, value and rule.
    """
    return _load(Settings, ENV_PREFIX)


def load_delegation_settings() -> DelegationSettings:
    """Read the settings of a delegation from the environment.

    Raises:
        SettingsError: as `load_settings` does.
    """
    return _load(DelegationSettings, DELEGATION_PREFIX)


def load_node_settings() -> NodeSettings:
    """Read the settings of the small node from the environment.

    Raises:
        SettingsError: as `load_settings` does.
    """
    return _load(NodeSettings, NODE_PREFIX)


@functools.cache
def settings() -> Settings:
    """Return this process's settings, read from the environment on first use."""
    return load_settings()
