"""The one place that reads the environment: every variable of ours, typed and explained, a class a prefix.

`docs/settings.md` and `config/env.example` are made from these classes (`make settings`).
"""

from __future__ import annotations

import functools
import os
import re
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from pocqueue.poc.fields import HttpUrl
from pocqueue.poc.search import MAX_BATCH_SIZE
from pocqueue.settings.base import EnvSettings, full_path

#: A token that can be guessed is none.
MIN_TOKEN_LENGTH = 16
_REDIS_SCHEMES = (
    *("redis://", "rediss://", "redis+socket://", "unix://"),
    *("redis+sentinel://", "rediss+sentinel://", "sentinel://"),
)

_Port = Annotated[int, Field(ge=0, le=65535)]


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return full_path(Path(base)) / "pocqueue"


class Settings(EnvSettings):
    """All processes."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_", env_ignore_empty=False)

    redis_url: SecretStr | None = None
    """Redis 6.2 or newer for rounds and Celery: `redis://:PASSWORD@HOST:6379/0`, with TLS `rediss://`, a socket `unix:///PATH`, sentinels `redis+sentinel://:PASSWORD@HOST:26379,HOST2:26379/0?master=NAME`; unset: a server of our own in the state folder"""
    state_dir: Path = Field(
        default_factory=_default_state_dir, examples=["~/.local/state/pocqueue"]
    )
    """folder for what outlives a process: own Redis, embedded model, proofs, logs; unset: below `$XDG_STATE_HOME`, if that is set"""
    model: str = Field(default="embedded", min_length=1)
    """`embedded`, a local folder or a hub id that transformers loads as a causal LM"""
    engine: str = "torch"
    """what runs the model: `torch`, `vllm` (a vLLM of the worker's own) or `vllm-server`"""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d+)$")
    """`auto`: queue gpuN takes CUDA device N, or gpu0 the CPU; or `cpu`, `cuda`, `cuda:N`"""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """arithmetic of the model: `bfloat16`, `float16`, `float32`, or `auto` for what its config says"""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of an engine; unset: torch's choice"""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """GPUs of one queue, which share the model; queue gpuN takes the N-th group (engine `vllm`)"""
    vllm_url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://[^/@\s]+/?$")
    """vLLM server whose model engine `vllm-server` uses; started with `VLLM_PLUGINS=pocqueue`"""
    vllm_token: SecretStr | None = None
    """token of a vLLM server's proof routes, both sides; unset: the server's `--api-key`, if any"""
    vllm_drain_seconds: float = Field(default=30.0, ge=0, le=600)
    """how long a vLLM server lets running requests finish before a round's first batch"""
    vllm_decode_share: float = Field(default=0.1, ge=0, le=0.9)
    """share of the time that a vLLM server's proof batches leave to requests which still run"""
    host_name: str = Field(default_factory=socket.gethostname, min_length=1)
    """name of this machine in the pool and in worker names; unset: its host name"""
    callback_private: bool = False
    """post callbacks to private, loopback and link-local addresses too; without it only to public ones"""
    trusted_proxies: str | None = None
    """proxies before the services, whose `X-Forwarded-For` says where a request comes from: addresses and networks with commas between them, such as `127.0.0.1,10.0.0.0/8`; unset: none"""
    metrics_address: str = "127.0.0.1"
    """address that a scheduler serves Prometheus metrics on"""
    metrics_port: _Port | None = None
    """port that a scheduler serves Prometheus metrics on, such as 9101; unset: none"""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """least severe message that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`"""
    flower_address: str = "127.0.0.1"
    """address that Flower listens on"""
    flower_port: _Port = 5555
    """port that Flower listens on"""
    flower_basic_auth: SecretStr | None = None
    """`user:password` that Flower asks for; needed off loopback. Unset: it shows but changes nothing"""
    flower_allow_open: bool = False
    """let Flower listen off loopback without a password: for a container whose port is published on loopback only"""

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

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, text: str | None) -> str | None:
        networks = (part.strip() for part in (text or "").split(","))
        return ",".join(str(ip_network(one)) for one in networks if one) or None

    @field_validator("state_dir", mode="before")
    @classmethod
    def _is_named(cls, path: object) -> object:
        # It would be whatever folder the process stands in, with keys and all.
        if path == "":
            raise ValueError("allowed is a folder's path; unset it for the default")
        return path

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return full_path(path)


class DelegationSettings(EnvSettings):
    """A delegation: what the big node serves, and where the small node finds it."""

    model_config = SettingsConfigDict(env_prefix="DELEGATION_")

    auth_token: SecretStr | None = None
    """token of the sessions, the same on both nodes; a big node needs it, 16 characters or more (make one: `openssl rand -hex 32`)"""
    host: str = "0.0.0.0"  # noqa: S104 - small nodes are elsewhere
    """address that the big node listens on"""
    port: _Port = 9090
    """port that the big node listens on"""
    max_sessions: int = Field(default=10, ge=1, le=10_000)
    """sessions at a time on the big node, of all customers"""
    window_seconds: float = Field(default=330.0, gt=0, le=3600)
    """seconds after which a session ends by itself"""
    tokens_file: Path | None = None
    """customers with tokens of their own, kept by `pocqueue delegation token`; unset: `delegation-tokens.json` in the state folder"""
    public_status: bool = False
    """show the big node's status and metrics without a token"""
    any_model: bool = False
    """take sessions that ask for another model than the deployed one, with a warning"""
    auth_failures: int = Field(default=20, ge=1, le=1_000_000)
    """wrong tokens from one address in a minute that are answered as such; more of them are told to wait. A right token is not refused for them"""
    tls_cert: Path | None = None
    """certificate chain of the big node, PEM; unset: plain http"""
    tls_key: Path | None = None
    """private key of that certificate, PEM"""
    tls_ca: Path | None = None
    """authority of the big node's certificate for the small node, PEM; unset: the system's"""
    url: HttpUrl | None = None
    """big node that the small node delegates to; unset: it works by itself"""
    poll_seconds: float = Field(default=5.0, ge=0.1, le=60)
    """seconds between two requests of the small node to a big node that does not support long polling"""
    runtime: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9-]{0,31}$")
    """what runs the model on the big node, such as `torch`, `vllm` or `vllm-x2` (two GPUs a model); unset: what runs it on the small one. Its proofs are checked by that, whatever it says"""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """arithmetic of the model on the big node; unset: that of the small one's"""
    dist_threshold: float | None = Field(default=None, ge=0, le=2)
    """how far artifacts of the big node may be from those of the small one's engine, as `pocqueue calibrate --proof artifact` measures it for a pool; unset: the round's own threshold"""
    p_mismatch: float | None = Field(default=None, gt=0, lt=1)
    """share of honest artifacts that are farther apart than that; 0.01 or less finds small cheats. Unset: the round's own"""
    stage_seconds: float = Field(default=190.0, gt=0, le=3600)
    """seconds for which the chain takes the artifacts of a round, from its start on: 35 blocks. What a big node found is sent before that is over, judged or not"""
    fallback: Literal["none", "local"] = "none"
    """what the small node does when the big one is away or cheats: `none` or `local` work"""

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


class NodeSettings(EnvSettings):
    """The small node: its address, its key, and what it can do by itself."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_NODE_")

    host: str = "127.0.0.1"
    """address that the small node listens on; its routes ask for no token"""
    port: _Port = 8080
    """port that the small node listens on"""
    allowed_hosts: str | None = None
    """host names by which the small node may be called, and whose web pages may use it, with commas between them, such as `node.example.com`. Addresses, `localhost` and names without a dot may be used to call it in any case; pages of other sites may not"""
    key: Path | None = None
    """its signing key, PEM or hex, readable by its owner only; unset: `node-key.pem` in the state folder (make one: `pocqueue node key new`)"""
    work: Literal["auto", "engine", "queue", "none"] = "auto"
    """what it works with itself: an `engine`, the GPU `queue`s, `none`; `auto`: none if it delegates, else an engine"""
    callback_url: HttpUrl | None = None
    """where batches go when a request names no URL; `/generated` and `/validated` are appended"""


class HostsSettings(EnvSettings):
    """GPU hosts: machines of others that join with a token, work and are paid."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_HOSTS_")

    host: str = "0.0.0.0"  # noqa: S104 - machines and owners are elsewhere
    """address that the gateway listens on"""
    port: _Port = 3001
    """port of its page, its REST routes and its WebSocket; unset: that of `PORT`, if that is set"""
    ws_port: _Port = Field(default=3002, validate_default=True)
    """second port with the same, which agents know for their WebSocket; unset: that of `WS_PORT`, if that is set"""
    public_url: HttpUrl | None = None
    """where browsers find the gateway, such as `https://hosts.example.com`: a wallet signs it, and agents sign its host name; needed behind a proxy and on the internet. Unset: wallets sign in by an address or `localhost` alone, and agents may call it by any name"""
    cors_origins: str | None = None
    """other origins whose pages may use the gateway, with commas between them, such as `https://app.example.com`; `*`: all of them, without sessions. Unset: those of `CORS_ORIGIN`, if that is set"""
    admin_token: SecretStr | None = None
    """token of those who submit jobs, list all nodes and ban them, 16 characters or more; unset: nobody can"""
    require_proof: bool = False
    """give node tokens only to wallets that have signed in; without it their nodes do a test job and their pay is held until then"""
    relay_name: str = Field(
        default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
    )
    """name of a gateway among several on one Redis; unset: the host name"""
    tls_cert: Path | None = None
    """certificate chain of the gateway, PEM; unset: plain http and ws"""
    tls_key: Path | None = None
    """private key of that certificate, PEM"""
    database_url: SecretStr | None = None
    """where nodes, jobs and earnings are kept: `postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME` or `sqlite:///PATH`; unset: `hosts.sqlite3` in the state folder"""
    token_seconds: float = Field(default=3600.0, ge=10, le=2_592_000)
    """seconds in which a node token has to be used"""
    offline_seconds: float = Field(default=30.0, ge=1, le=3600)
    """seconds of silence after which a node is offline and gets no job"""
    rate_micro: int = Field(default=10_000, ge=0, le=1_000_000_000)
    """pay for a second of work, in micro-HYPER: 10000 are 0.01 HYPER"""
    commands_file: Path | None = None
    """TOML file with the commands and images that jobs may run; unset: `sleep` and `gpus`, which is `nvidia-smi`"""

    @model_validator(mode="before")
    @classmethod
    def _names_of_others(cls, given: Any) -> Any:
        # What servers of this kind have been told so far.
        for field, variable in (
            ("port", "PORT"),
            ("ws_port", "WS_PORT"),
            ("cors_origins", "CORS_ORIGIN"),
        ):
            if isinstance(given, dict) and field not in given and os.environ.get(variable):
                given = given | {field: os.environ[variable]}
        return given

    @field_validator("ws_port")
    @classmethod
    def _another_port(cls, port: int, info: ValidationInfo) -> int:
        if port and port == info.data.get("port"):
            raise ValueError(
                "that is the first port, which has the WebSocket as well; choose another, or 0 for a free one"
            )
        return port

    @field_validator("admin_token")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        text = "" if token is None else token.get_secret_value()
        if text and (len(text) < MIN_TOKEN_LENGTH or not re.fullmatch(r"[!-~]+", text)):
            raise ValueError(
                f"a token is {MIN_TOKEN_LENGTH} or more printable ASCII characters without spaces"
            )
        return token if text else None

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: SecretStr | None) -> SecretStr | None:
        text = "" if url is None else url.get_secret_value()
        if text and not text.startswith(("postgresql+psycopg://", "sqlite:///")):
            raise ValueError("must begin with postgresql+psycopg:// or sqlite:///")
        return url if text else None


class PouwSettings(EnvSettings):
    """Nodes of the network of useful work (`pocqueue pouw`)."""

    model_config = SettingsConfigDict(env_prefix="POCQUEUE_POUW_")

    network: str = Field(default="dev", min_length=1)
    """the network: `dev`, whose coins are worth nothing, or the path of a genesis file"""
    dir: Path | None = None
    """folder of a node's chain and weights; unset: `pouw` in the state folder"""
    key: Path | None = None
    """key of the node's account, PEM or hex, readable by its owner only; unset: `key.pem` in that folder, made if it is not there"""
    http_port: _Port = 8180
    """port on 127.0.0.1 at which a node answers `pocqueue pouw status` and the other commands; 0 takes a free one"""
    data_mib: int = Field(default=1024, ge=128, le=2**20)
    """MiB of clients' data that a node keeps in its folder; those of tasks that are over make way"""


class ArtifactSettings(EnvSettings):
    """Artifacts for the network's chain, by a vLLM server: the names and defaults are those of its own servers."""

    model_config = SettingsConfigDict(env_prefix="POC_")

    batch_size_default: int = Field(default=32, ge=0, le=MAX_BATCH_SIZE)
    """nonces of a pass where a request does not say; 0: 32. Fewer where the model takes fewer at once"""
    rpc_timeout_ms: int = Field(default=60_000, ge=1, le=3_600_000)
    """milliseconds for one pass; one of a round that takes longer is tried again, three times at most"""
    generate_chunk_timeout_sec: float = Field(default=60, gt=0, le=3600)
    """seconds for one pass of a request, with its wait for the pass at hand; a request that takes longer for one has failed"""
    generate_result_ttl_sec: float = Field(default=300, ge=0, le=86_400)
    """seconds for which the result of a request can be asked for"""
    max_queued_nonces: int = Field(default=100_000, ge=1, le=100_000_000)
    """nonces of all requests that wait; what comes beyond is answered with 429"""
    callback_interval_sec: float = Field(default=5, ge=0, le=3600)
    """seconds between two posts of a round's artifacts; 0: each pass at once"""
    callback_max_artifacts: int = Field(default=1_000_000, ge=1, le=100_000_000)
    """artifacts that wait for a receiver; what comes beyond is dropped"""
    callback_max_retries: int = Field(default=10, ge=1, le=1_000_000)
    """times in a row that a receiver may refuse (400, 404 …) before what is in the post is dropped. One that is away, or says 429 or 5xx, is tried until five minutes after the round"""
    callback_max_concurrent: int = Field(default=10, ge=1, le=10_000)
    """posts of results at a time, to as many receivers"""
    callback_queue_size: int = Field(default=10_000, ge=1, le=100_000_000)
    """posts of results that wait; what comes beyond is dropped"""


class AgentSettings(EnvSettings):
    """The agent on the machine of a GPU host."""

    model_config = SettingsConfigDict(env_prefix="HN_")

    endpoint: str | None = None
    """server that the machine works for, `ws://HOST:3002` or `wss://HOST/ws`; its page shows it"""
    node_token: SecretStr | None = None
    """token that the server's page has made; used once, and again whenever the agent starts: it comes back by its key then"""
    sandbox: Literal["auto", "docker", "podman", "bubblewrap", "none"] = "auto"
    """what commands run in: `docker`, `podman`, `bubblewrap`, the first of these that is there (`auto`), or `none`: no commands are taken"""
    commands: str = "nvidia-smi,sleep"
    """programs that a command of the server may start, with commas between them; others are refused"""
    containers: bool = True
    """take jobs that bring a container image, where there is Docker or podman"""
    memory_mib: int | None = Field(default=None, ge=64)
    """most memory of one job, in MiB, its files included; a job that may have more gets this; unset: four fifths of the machine's"""
    stop_seconds: float = Field(default=8.0, ge=0, le=3600)
    """how long running jobs may go on when the agent is told to stop; then they are given back"""

    @field_validator("endpoint")
    @classmethod
    def _is_websocket(cls, url: str | None) -> str | None:
        if url is not None and not _is_endpoint(url):
            raise ValueError(
                "allowed is ws://HOST:PORT or wss://HOST, as the server's page shows it"
            )
        return url


_ENDPOINT = re.compile(r"wss?://(\[[\da-fA-F:.]+\]|[^/@\s?#:\[\]]+)(:\d{1,5})?(/[^\s?#]*)?")


def _is_endpoint(url: str) -> bool:
    if not _ENDPOINT.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as whoever looks the name up does
        return parts.port != 0
    except ValueError:  # no address, no name, no port
        return False


#: Every class of settings, in the order in which they are explained.
ALL = (
    *(Settings, DelegationSettings, NodeSettings, ArtifactSettings, HostsSettings),
    *(AgentSettings, PouwSettings),
)
ENV_PREFIX = Settings.variable("")
DELEGATION_PREFIX = DelegationSettings.variable("")
NODE_PREFIX = NodeSettings.variable("")
HOSTS_PREFIX = HostsSettings.variable("")


@functools.cache
def settings() -> Settings:
    """Return this process's settings, read from the environment on first use."""
    return Settings.load()
