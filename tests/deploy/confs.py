"""Conf files for tests."""

from __future__ import annotations

import base64
from pathlib import Path

from pocqueue.deploy.conf import Conf, parse_conf

PASSWORD = "correct horse battery"

#: A conf file that has what is needed, as people write it.
EXAMPLE = f"""\
# my first node
SERVER_IP="203.0.113.7"   # as the provider shows it
SSH_USER=ubuntu
KEY_NAME="quick-newton"
KEYRING_PASSWORD="{PASSWORD}"
ACCOUNT_PUBKEY="{base64.b64encode(bytes([2, *range(32)])).decode()}"

MODEL_NAME="Qwen/Qwen3-32B-FP8"
SEED_API_URL="http://node2.gonka.ai:8000"
NODE_CONFIG_PROFILE="x1"
PERSISTENT_PEERS="{"ab" * 20}@203.0.113.9:5000,{"cd" * 20}@node2.example:5000"
"""


def text(**changes: str | None) -> str:
    """Return the example with lines changed or added, or left out (None)."""
    lines = EXAMPLE.splitlines()
    for name, value in changes.items():
        lines = [line for line in lines if not line.startswith(f"{name}=")]
        if value is not None:
            lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n"


def conf(folder: Path, **changes: str | None) -> Conf:
    """Return the example's conf, as if its file were in a folder."""
    return parse_conf(text(**changes).encode(), folder / "node1.conf")
