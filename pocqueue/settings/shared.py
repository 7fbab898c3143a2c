"""What every process of pocqueue may be told: `POCQUEUE_*`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from pocqueue.settings.base import EnvSettings

_REDIS_SCHEMES = ("redis://", "rediss://", "redis+socket://", "unix://")


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "pocqueue"


class Settings(EnvSettings):
    """All processes."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_", env_ignore_empty=False)

    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis 6.2 or newer for rounds and Celery, such as `redis://:PASSWORD@HOST:6379/0`; unset: a server of our own in the state folder",
    )
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        examples=["~/.local/state/pocqueue"],
        description="folder for what outlives a process: own Redis, embedded model, proofs, logs; unset: below `$XDG_STATE_HOME`, where that is set",
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
        default="auto",
        description="arithmetic of the model: `bfloat16`, `float16`, `float32`, or `auto` for what its config says",
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
        description="vLLM server whose model engine `vllm-server` uses; started with `VLLM_PLUGINS=pocqueue`",
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
    host_name: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="name of this machine in the pool and in worker names; unset: its host name",
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
        description="port that a scheduler serves Prometheus metrics on, such as 9101; unset: none",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="least severe message that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`",
    )
    flower_address: str = Field(default="127.0.0.1", description="address that Flower listens on")
    flower_port: int = Field(
        default=5555, ge=0, le=65535, description="port that Flower listens on"
    )
    flower_basic_auth: SecretStr | None = Field(
        default=None,
        description="`user:password` that Flower asks for; needed off loopback. Unset: it shows but changes nothing",
    )
    flower_allow_open: bool = Field(
        default=False,
        description="let Flower listen off loopback without a password: for a container whose port is published on loopback only",
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
