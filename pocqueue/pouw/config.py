"""The configuration of a node: its fields and their bounds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import ConfigError

if TYPE_CHECKING:
    from pocqueue.node.keys import SigningKey

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 8000
#: One file of data as large as any may be, and one that is used beside it.
MIN_DATA_MIB = 128
_T = TypeVar("_T")
_NODE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class NodeConfig:
    """What a node is to be. Plain: fields may be changed while it runs, and `omega_b`, `omega_m` then count at once.

    Raises:
        ConfigError: names the field, its value, and what is allowed.
    """

    # Basic node configuration
    node_id: str  #: a local name; who a node is, its key says
    role: NodeRole
    host: str = DEFAULT_HOST  #: where it listens; ``localhost`` means 127.0.0.1 and ::1
    port: int = DEFAULT_PORT  #: 0: any

    # Economic configuration
    initial_stake: float = 100.0  #: PAI; where there is a faucet, `start` sees to that much
    preferences: dict[str, Any] = field(default_factory=dict)  #: JSON of at most 2 KiB

    # Mining configuration: own effort only, never what others accept
    omega_b: float = 1e-6  #: parts of a batch per slot: round(omega_b / 1e-6), 1 to 8
    omega_m: float = 1e-8  #: share of the allowed draws that are tried: omega_m / 1e-8, at most all

    # Network configuration
    max_peers: int = 50  #: links; half of them from others at most
    bootstrap_peers: list[tuple[str, int]] = field(default_factory=list)

    # Security configuration
    enable_security_monitoring: bool = True  #: False: no alerts, `security_system` is None
    enable_attack_mitigation: bool = True  #: False: alerts, but nobody is banned

    # Advanced features
    enable_advanced_features: bool = True  #: False: a supervisor takes no part in committees
    enable_production_features: bool = True  #: False: nothing is sampled for health

    # Ours
    network: str = "dev"  #: ``dev``, or the path of a genesis file
    data_dir: Path | None = None  #: None: nothing outlives the process
    key: SigningKey | None = None  #: None: made anew, or kept in `data_dir`
    data_mib: int = 1024  #: of clients' data that are kept, MiB

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not _NODE_ID.fullmatch(self.node_id):
            raise ConfigError("node_id", self.node_id, "1 to 64 of A-Z a-z 0-9 _ . -")
        if not isinstance(self.role, NodeRole):
            raise ConfigError("role", self.role, "a NodeRole")
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError("host", self.host, "a name or an address")
        _check_int("port", self.port, 0, 65535)
        _check_int("data_mib", self.data_mib, MIN_DATA_MIB, 2**20)
        _check_positive("omega_b", self.omega_b)
        _check_positive("omega_m", self.omega_m)
        _check_int("max_peers", self.max_peers, 1, 1000)
        if not _is_number(self.initial_stake) or not 0 <= self.initial_stake < 9e12:
            raise ConfigError("initial_stake", self.initial_stake, "PAI, 0 or more")
        check_preferences(self.preferences)
        for peer in _as_list(self.bootstrap_peers):
            _check_peer(peer)
        for name in (
            *("enable_security_monitoring", "enable_attack_mitigation"),
            *("enable_advanced_features", "enable_production_features"),
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(name, getattr(self, name), "True or False")

    @property
    def parts(self) -> int:
        """Mini-batches of one slot."""
        return min(8, max(1, round(self.omega_b / 1e-6)))

    def tries(self, allowed: int) -> int:
        """Return how many of the allowed draws are tried."""
        return min(allowed, max(1, round(allowed * self.omega_m / 1e-8)))


def check_preferences(preferences: object) -> bytes:
    """Return preferences as JSON with sorted keys.

    Raises:
        ConfigError: they are no JSON object, or too long.
    """
    # Here: programs import this module before they know whether the extra is installed.
    from pocqueue.pouw.wire.transactions import MAX_PREFERENCES_BYTES

    try:
        if not isinstance(preferences, dict):
            raise TypeError
        data = json.dumps(preferences, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError("preferences", preferences, "an object that JSON can write") from None
    if len(data.encode()) > MAX_PREFERENCES_BYTES:
        raise ConfigError(
            "preferences", f"{data[:40]}…", f"at most {MAX_PREFERENCES_BYTES} bytes of JSON"
        )
    return data.encode()


def place(config: NodeConfig, host: str, port: int) -> tuple[str, int]:
    """Return where a node listens whose constructor was given a place beside its configuration.

    What is not the default counts.

    Raises:
        ConfigError: both name another place than the default, and not the same one.
    """
    return (
        _one_of("host", host, config.host, DEFAULT_HOST),
        _one_of("port", port, config.port, DEFAULT_PORT),
    )


def _one_of(name: str, given: _T, configured: _T, default: _T) -> _T:
    if given == default:
        return configured
    if configured not in (default, given):
        raise ConfigError(
            name, given, f"the same as in config, where it is {configured!r}, or one of the two"
        )
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(name, value, f"a whole number from {low} to {high}")


def _check_positive(name: str, value: float) -> None:
    if not _is_number(value) or value <= 0:
        raise ConfigError(name, value, "a number above 0")


def _as_list(peers: object) -> list[Any]:
    if not isinstance(peers, list | tuple):
        raise ConfigError("bootstrap_peers", peers, "a list of (host, port)")
    return list(peers)


def _check_peer(peer: object) -> None:
    match peer:
        case (str() as host, int() as port) if host and 0 < port <= 65535:
            return
    raise ConfigError("bootstrap_peers", peer, "a list of (host, port), ports 1 to 65535")


def parse_peer(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[ADDRESS]:PORT``.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ConfigError("--bootstrap", text, "HOST:PORT, such as 127.0.0.1:8000")
    return host, int(port)
