"""The variables of pocqueue on a server, `/etc/pocqueue/pocqueue.env`.

systemd reads the file, and so does `sh`: a value in single quotes means the same to both as long as it has neither a single
quote nor a backslash.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.words import Secret
from pocqueue.env_file import line_of
from pocqueue.errors import PocqueueError
from pocqueue.files import NotPrivate, read_private
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.settings import ALL

#: Of others, which pocqueue's libraries read.
_OF_OTHERS = {"HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"}
#: What a process was started with: the version, the variables, and its unit's file.
STACK_ID = "STACK_ID"
_MAX_BYTES = 64 * 1024


def _known() -> dict[str, bool]:
    """Return all variables, and whether each is a secret."""
    ours = {kind.variable(name): kind.is_secret(name) for kind in ALL for name in kind.model_fields}
    return ours | {name: name == "HF_TOKEN" for name in _OF_OTHERS}


def variables(conf: Conf, state_dir: str) -> dict[str, str | Secret]:
    """Return the variables by name.

    Args:
        conf: of the server.
        state_dir: its folder for what outlives a process.

    Raises:
        BadUsage: a file that the conf names cannot be used, or no Redis is named.
    """
    name, roles = conf.key_name, conf.pocqueue_role
    found: dict[str, str | Secret] = {
        "POCQUEUE_STATE_DIR": state_dir,
        "POCQUEUE_HOST_NAME": name,
        "HF_HOME": f"{state_dir}/huggingface",
    }
    if set(roles) != {"agent"}:
        found["POCQUEUE_REDIS_URL"] = _redis_url(conf, state_dir)
    if "worker" in roles:
        found["POCQUEUE_MODEL"] = conf.pocqueue_model
        if conf.pocqueue_run == "systemd":
            # Of a GPU's worker nobody is to find out by its rate that it is on the CPU.
            found["POCQUEUE_DEVICE"] = "cuda"
    if "scheduler" in roles:
        found |= {"POCQUEUE_METRICS_ADDRESS": "127.0.0.1", "POCQUEUE_METRICS_PORT": "9101"}
    # Nothing is public by accident: what is to be so is said in the file of more variables.
    if "delegation" in roles:
        found["DELEGATION_HOST"] = "127.0.0.1"
    if "hosts" in roles:
        found |= {"POCQUEUE_HOSTS_HOST": "127.0.0.1", "POCQUEUE_HOSTS_RELAY_NAME": name}
    if conf.pocqueue_env_file is not None:
        found |= _more(conf.pocqueue_env_file)
    return found


def _private(path: Path, field: str) -> str:
    try:
        return read_private(path, _MAX_BYTES).decode()
    except NotPrivate:
        raise BadUsage(f"{field}: {path} has to be a file of mode 0600: chmod 600 {path}") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise BadUsage(f"{field}: {path} cannot be read ({exc}).") from None


def _redis_url(conf: Conf, state_dir: str) -> str | Secret:
    path = conf.pocqueue_redis_url_file
    if path is None and "redis" in conf.pocqueue_role:
        return RedisServer(Path(state_dir)).url
    if path is None:
        raise BadUsage(
            "POCQUEUE_REDIS_URL_FILE is missing: name a file of mode 0600 with the URL of Redis, or add redis to POCQUEUE_ROLE."
        )
    if "redis" in conf.pocqueue_role:
        raise BadUsage(
            "POCQUEUE_REDIS_URL_FILE and redis in POCQUEUE_ROLE are two servers: leave one of them."
        )
    url = _private(path, "POCQUEUE_REDIS_URL_FILE").strip()
    _check_value("POCQUEUE_REDIS_URL", url)
    try:
        RedisUrl.parse(url)
    except PocqueueError as exc:
        raise BadUsage(f"POCQUEUE_REDIS_URL_FILE: {exc}") from None
    return Secret("POCQUEUE_REDIS_URL", url)


def _check_value(name: str, value: str) -> None:
    if not value or re.search(r"['\\\x00-\x1f\x7f-\x9f]", value):
        raise BadUsage(
            f"{name} is '…'; allowed: one line of text that is not empty, without ' and \\."
        )


def _more(path: Path) -> dict[str, str | Secret]:
    """Return what a file of variables says.

    Raises:
        BadUsage: it cannot be read, or has something else in it.
    """
    known, found = _known(), dict[str, str | Secret]()
    for line in parse_stream(io.StringIO(_private(path, "POCQUEUE_ENV_FILE"))):
        number = line_of(line)
        if line.error:
            raise BadUsage(f"{path}, line {number}: it is no NAME=value.")
        if (name := line.key) is None:
            continue
        if name in {"POCQUEUE_REDIS_URL", "POCQUEUE_STATE_DIR", "POCQUEUE_HOST_NAME"}:
            raise BadUsage(f"{path}, line {number}: {name} is given by the conf file.")
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            meant = f": did you mean {near[0]}?" if near else "."
            raise BadUsage(
                f"{path}, line {number}: {name[:64]!r} is no variable of pocqueue{meant}"
            )
        _check_value(name, value := line.value or "")
        found[name] = Secret(name, value) if known[name] else value
    return found


def secrets_of(values: Mapping[str, str | Secret]) -> list[Secret]:
    """Return all that must not be shown: the password within a URL, too, which some error may name alone."""
    found = [value for value in values.values() if isinstance(value, Secret)]
    url = values.get("POCQUEUE_REDIS_URL")
    if isinstance(url, Secret) and (password := RedisUrl.parse(url.reveal()).options.password):
        found.append(Secret("password of Redis", password))
    return found


def env_file(values: Mapping[str, str | Secret], stack_id: str) -> tuple[str | Secret, ...]:
    """Return the content of the file."""
    parts: list[str | Secret] = []
    for name, value in [*values.items(), (STACK_ID, stack_id)]:
        parts += [f"{name}='", value, "'\n"]
    return tuple(parts)


def revealed(parts: Iterable[str | Secret]) -> str:
    """Return a content as it is written."""
    return "".join(part.reveal() if isinstance(part, Secret) else part for part in parts)


def stack_id(folder: str, values: Mapping[str, str | Secret], unit_texts: Iterable[str]) -> str:
    """Return what a process that runs as it should was started with.

    Args:
        folder: of the version.
        values: the variables.
        unit_texts: files of all units.
    """
    found = hashlib.sha256()
    for part in (folder, revealed(env_file(values, "")), *unit_texts):
        found.update(f"{part}\0".encode())
    return found.hexdigest()[:16]
