"""One SSH connection as it is opened: where to, as whom, and by which host key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
from typing_extensions import override

from pocqueue.deploy.errors import Unreachable
from pocqueue.deploy.host_key import HostKeys, Verdict
from pocqueue.deploy.rules import Jump
from pocqueue.errors import first_line

CONNECT_TIMEOUT_S = 10.0
LOGIN_TIMEOUT_S = 20.0
KEEPALIVE_S = 15.0
KEEPALIVE_TRIES = 4
_ALGORITHMS = {"ssh-rsa": ["rsa-sha2-256", "rsa-sha2-512"]}
_ALL_ALGORITHMS = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and as whom."""

    host: str
    port: int
    user: str
    #: Private key; None: those of ~/.ssh/config, of ~/.ssh and the agent's.
    key: Path | None = None
    jump: Jump | None = None


class _Client(asyncssh.SSHClient):
    """Judges the server's key."""

    def __init__(self, keys: HostKeys) -> None:
        self._keys = keys
        #: The key that was refused.
        self.refused: str | None = None

    @override
    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        text = key.export_public_key("openssh").decode().strip()
        if self._keys.judge(text) is not Verdict.KNOWN:
            self.refused = text
            return False
        # A pinned one is written down, so that it stays the only one without the pin.
        self._keys.keep(text)
        return True


async def open_transport(target: Target, keys: HostKeys) -> asyncssh.SSHClientConnection:
    """Connect and log in.

    Args:
        target: where to, and as whom.
        keys: host keys that will do.

    Raises:
        HostKeyUnknown: nobody has confirmed the server's key.
        HostKeyChanged: it has another one.
        Unreachable: it does not answer, or does not let us in.
    """
    client = _Client(keys)
    options: dict[str, Any] = {}
    if target.key is not None:
        options["client_keys"] = [str(target.key)]
    if target.jump is not None:
        # Its key is checked by ~/.ssh/known_hosts, as ssh -J does.
        place = f"{target.jump.host}:{target.jump.port}"
        options["tunnel"] = f"{target.jump.user or target.user}@{place}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + LOGIN_TIMEOUT_S):
            return await asyncssh.connect(
                target.host,
                target.port,
                username=target.user,
                client_factory=lambda: client,
                # None would check nothing: an empty list leaves the judgement to the client above.
                known_hosts=([], [], []),
                server_host_key_algs=_host_key_algorithms(keys),
                preferred_auth="publickey",
                connect_timeout=CONNECT_TIMEOUT_S,
                login_timeout=LOGIN_TIMEOUT_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVE_TRIES,
                agent_forwarding=False,
                **options,
            )
    except asyncssh.HostKeyNotVerifiable as exc:
        if client.refused is not None:
            raise keys.error(client.refused) from None
        raise Unreachable(f"The host to go through was refused: {first_line(exc)}.") from None
    except asyncssh.PermissionDenied:
        raise Unreachable(
            f"{target.host} does not let {target.user} in with the keys of this machine: name one with SSH_KEY, "
            "or add it to the agent (ssh-add)."
        ) from None
    except (OSError, asyncssh.Error, asyncssh.KeyImportError, asyncssh.ConfigParseError) as exc:
        raise Unreachable(
            f"No SSH connection to {target.host} port {target.port} ({first_line(exc)}): is it up, and is "
            "SSH_PORT open for this machine?"
        ) from None


def _host_key_algorithms(keys: HostKeys) -> list[str]:
    """Return what to ask for, those of confirmed keys first; no certificates, which nobody has confirmed."""
    first = [name for kind in keys.types for name in _ALGORITHMS.get(kind, [kind])]
    return list(dict.fromkeys([*first, *_ALL_ALGORITHMS]))
