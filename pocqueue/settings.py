"""The one place that reads the environment: every `POCQUEUE_*` variable, typed and explained.

README.md and `config/env.example` carry the same list; a test keeps the three together.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pocqueue.errors import SettingsError

ENV_PREFIX = "POCQUEUE_"

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

    @field_validator("num_threads", "vllm_token", mode="before")
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


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a variable has a value that is not allowed; names variable, value and rule.
    """
    try:
        return Settings()
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else "?"
        secret = name in {"redis_url", "flower_basic_auth", "vllm_token"}
        shown = "the given value" if secret else repr(problem["input"])
        reason = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"{ENV_PREFIX}{name.upper()} cannot be {shown}: {reason}. "
            "config/env.example lists every variable and its default."
        ) from None


@functools.cache
def settings() -> Settings:
    """Return this process's settings, read from the environment on first use."""
    return load_settings()
