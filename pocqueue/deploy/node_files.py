"""The three files of a node: its variables for bash and for compose, and what its GPUs run.

`config.env` is sourced by bash and `.env` is read by compose; a value in single quotes means the same to both as long as it
has neither a single quote nor a backslash, which the conf's rules see to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.errors import BadUsage, DeployError
from pocqueue.deploy.words import Secret

#: Tensor parallelism of the profiles; how many instances run is the GPUs' number over it.
_PROFILES = {"x1": 1, "x8": 4}
_GPUS = {"x1": 1, "x8": 8}
_RPC_SERVERS = ("http://node1.gonka.ai:8000/chain-rpc/", "http://node2.gonka.ai:8000/chain-rpc/")


@dataclass(frozen=True, slots=True)
class NodeFile:
    """One of them."""

    name: str
    parts: tuple[str | Secret, ...]
    mode: int

    @property
    def text(self) -> str:
        """Return its content, secrets and all."""
        return "".join(part.reveal() if isinstance(part, Secret) else part for part in self.parts)

    @property
    def shown(self) -> str:
        """Return its content for people."""
        return "".join(repr(part) if isinstance(part, Secret) else part for part in self.parts)


def node_files(conf: Conf) -> tuple[NodeFile, ...]:
    """Return the files of a node.

    Raises:
        DeployError: the password is not known, or the profile is no list of nodes that has the model.
    """
    values = variables(conf)
    return (
        NodeFile("config.env", tuple(_lines(values, "export ")), 0o600),
        NodeFile(".env", tuple(_lines(values, "")), 0o600),
        NodeFile("node-config.json", (node_config(conf),), 0o644),
    )


def variables(conf: Conf) -> dict[str, str | Secret]:
    """Return what the node's services read, by name.

    Raises:
        DeployError: the password is not known.
    """
    if conf.keyring_password is None:
        raise DeployError(
            "KEYRING_PASSWORD is not known: write it into the conf file, or run on a terminal."
        )
    seed = conf.seed_api_url.rstrip("/")
    first, second = rpc_servers(conf)
    return {
        "KEY_NAME": conf.key_name,
        "KEYRING_PASSWORD": conf.keyring_password,
        "KEYRING_BACKEND": "file",
        "API_PORT": str(conf.api_port),
        "API_SSL_PORT": "8443",
        "PUBLIC_URL": conf.public_url,
        "P2P_EXTERNAL_ADDRESS": f"tcp://{_place(conf.server_ip)}:5000",
        "ACCOUNT_PUBKEY": conf.account_pubkey,
        "NODE_CONFIG": "./node-config.json",
        "HF_HOME": conf.hf_home,
        "SEED_API_URL": seed,
        "SEED_NODE_RPC_URL": first,
        "SEED_NODE_P2P_URL": f"tcp://{_place(urlsplit(seed).hostname or '')}:5000",
        "DAPI_API__POC_CALLBACK_URL": conf.poc_callback_url,
        "DAPI_CHAIN_NODE__URL": "http://node:26657",
        "DAPI_CHAIN_NODE__P2P_URL": "http://node:26656",
        "RPC_SERVER_URL_1": first,
        "RPC_SERVER_URL_2": second,
        "PORT": "8080",
        "INFERENCE_PORT": "5050",
        "SYNC_WITH_SNAPSHOTS": "true" if conf.state_sync == "on" else "false",
    }


def rpc_servers(conf: Conf) -> tuple[str, str]:
    """Return the URLs of two servers of the chain: a snapshot is trusted where both agree on its block."""
    first = f"{conf.seed_api_url.rstrip('/')}/chain-rpc/"
    return first, next(url for url in _RPC_SERVERS if url != first)


def _place(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _lines(values: Mapping[str, str | Secret], before: str) -> Iterator[str | Secret]:
    for name, value in values.items():
        text = value.reveal() if isinstance(value, Secret) else value
        assert not re.search(r"['\\\x00-\x1f\x7f]", text), name
        yield f"{before}{name}='"
        yield value
        yield "'\n"


def num_gpus(conf: Conf) -> int:
    """Return how many GPUs a node needs: those of its profile, or one at least where that is the operator's own file."""
    return _GPUS.get(str(conf.node_config_profile), 1)


def node_config(conf: Conf) -> str:
    """Return what the node's GPUs run, as JSON: a profile, or the operator's own file as it is.

    Raises:
        DeployError: the file is no list of nodes, or none of them has the model.
    """
    profile = conf.node_config_profile
    if isinstance(profile, Path):
        return _own_config(profile, conf.model_name)
    args = ["--tensor-parallel-size", str(_PROFILES[profile])]
    node = {
        "id": "node1",
        "host": "inference",
        "inference_port": 5000,
        "poc_port": 8080,
        "max_concurrent": 500,
        "models": {conf.model_name: {"args": args}},
    }
    return json.dumps([node], indent=2) + "\n"


def _own_config(path: Path, model: str) -> str:
    try:
        text = path.read_text("utf-8")
        nodes = json.loads(text)
        for node in nodes:
            _check_node(node)
        if not nodes or not any(model in node["models"] for node in nodes):
            raise ValueError(f"no node has the model {model}")
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise BadUsage(
            f"{path} is no list of nodes ({str(exc)[:200]}); allowed: a JSON list of objects with id, host, inference_port, "
            f"poc_port, max_concurrent and models, one of them with {model}."
        ) from None
    return text


def _check_node(node: Any) -> None:
    for name in ("id", "host"):
        if not isinstance(node[name], str) or not node[name]:
            raise ValueError(f"{name} is no text")
    for name in ("inference_port", "poc_port"):
        if type(node[name]) is not int or not 0 < node[name] < 65536:
            raise ValueError(f"{name} is no port")
    if type(node["max_concurrent"]) is not int or node["max_concurrent"] < 1:
        raise ValueError("max_concurrent is no number of 1 or more")
    for model, settings in node["models"].items():
        if not all(isinstance(word, str) for word in settings.get("args", [])):
            raise ValueError(f"args of {model} are no list of texts")
