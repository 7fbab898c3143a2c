"""What the small node is told beside that: `POCQUEUE_NODE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from pocqueue.settings.base import EnvSettings


class NodeSettings(EnvSettings):
    """The small node: its address, its key, and what it can do by itself."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_NODE_")

    host: str = Field(
        default="127.0.0.1",
        description="address that the small node listens on; its routes ask for no token",
    )
    port: int = Field(
        default=8080, ge=0, le=65535, description="port that the small node listens on"
    )
    key: Path | None = Field(
        default=None,
        description="its signing key, PEM or hex, readable by its owner only; unset: `node-key.pem` in the state folder (make one: `pocqueue node key new`)",
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
