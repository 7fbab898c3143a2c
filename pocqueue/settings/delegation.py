"""What both ends of a delegation are told: `DELEGATION_*`, the names that operators know already."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from pocqueue.settings.base import EnvSettings

#: A token that can be guessed is none.
MIN_TOKEN_LENGTH = 16


class DelegationSettings(EnvSettings):
    """A delegation: what the big node serves, and where the small node finds it."""

    model_config = SettingsConfigDict(env_prefix="DELEGATION_")

    auth_token: SecretStr | None = Field(
        default=None,
        description="token of the sessions, the same on both nodes; a big node needs it, 16 characters or more (make one: `openssl rand -hex 32`)",
    )
    host: str = Field(default="0.0.0.0", description="address that the big node listens on")  # noqa: S104 - small nodes are elsewhere
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
        description="customers with tokens of their own, kept by `pocqueue delegation token`; unset: `delegation-tokens.json` in the state folder",
    )
    public_status: bool = Field(
        default=False, description="show the big node's status and metrics without a token"
    )
    any_model: bool = Field(
        default=False,
        description="take sessions that ask for another model than the deployed one, with a warning",
    )
    auth_failures: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="wrong tokens from one address in a minute, after which it is refused; more where many small nodes come from one address, through a proxy or NAT",
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
        description="seconds between two requests of the small node to a big node that does not support long polling",
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
