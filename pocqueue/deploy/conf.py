"""The conf file of a node, `nodes/NAME.conf`: lines ``NAME=value``, parsed and never run.

Quotes and comments behind values are those of python-dotenv's parser; nothing is interpolated: ``$(…)`` and ``${…}`` are
text, which most fields then refuse. Every problem is found at once, by line and field, before anything is connected.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocqueue.deploy import rules
from pocqueue.deploy.errors import ConfError, Problem
from pocqueue.deploy.words import Secret
from pocqueue.env_file import line_of
from pocqueue.files import NotPrivate, read_private
from pocqueue.words import shown

MAX_BYTES = 64 * 1024
_PASSWORD = "KEYRING_PASSWORD"  # noqa: S105 - the field's name


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a conf file.

    Attributes:
        name: as it stands in the file.
        rule: from its text to its value; raises `ValueError` with what is allowed.
        help: one line for a person.
        default: its text where it is not there; empty: its value is None then, or made of others.
        needed: it has to be there.
    """

    name: str
    rule: Callable[[str], Any]
    help: str
    default: str = ""
    needed: bool = False


FIELDS = (
    Field("SERVER_IP", rules.host, "Address or name of the server.", needed=True),
    Field("SSH_USER", rules.user, "Who logs in there: root, or one with sudo.", needed=True),
    Field("SSH_PORT", rules.port, "Port of its SSH.", "22"),
    Field("SSH_KEY", rules.local_path, "Private key on this machine; else ~/.ssh and the agent."),
    Field("SSH_HOST_KEY", rules.fingerprint, "Fingerprint of its host key, SHA256:…."),
    Field("SSH_JUMP", rules.jump, "Host to go through, [user@]host[:port]."),
    Field("KEY_NAME", rules.key_name, "Name of the node: its folder and its key.", needed=True),
    Field("KEYRING_PASSWORD", rules.password, "Password of its keyring."),
    Field("KEYRING_PASSWORD_FILE", rules.local_path, "File with that password, mode 0600."),
    Field(
        "ACCOUNT_PUBKEY", rules.public_key, "Public key of the cold account, base64.", needed=True
    ),
    Field(
        "COLD_KEY_NAME",
        rules.cold_key_name,
        "Name of the cold key where you keep it; it is never asked for on the server.",
        "gonka-account-key",
    ),
    Field("MODEL_NAME", rules.model, "Model on the hub, OWNER/NAME.", needed=True),
    Field("MODEL_REVISION", rules.commit, "Its commit; else the newest, once."),
    Field("SEED_API_URL", rules.url, "A node of the network that is there already.", needed=True),
    Field("NODE_CONFIG_PROFILE", rules.profile, "x1, x8, or a JSON file of the node.", needed=True),
    Field("VOLUME_DEVICE", rules.device, "The data disk.", "/dev/vdc"),
    Field("VOLUME_MOUNT", rules.mount_point, "Where it is mounted.", "/mnt/ssd"),
    Field("VOLUME_FORMAT", rules.one_of("if-empty", "never"), "if-empty, or never.", "if-empty"),
    Field("VOLUME_MIN_GB", rules.whole, "A smaller disk is never formatted.", "200"),
    Field("HF_HOME", rules.folder, "Models there [default: VOLUME_MOUNT/hf]."),
    Field("GONKA_PATH", rules.folder, "Gonka's repository there [default: VOLUME_MOUNT/gonka]."),
    Field("GONKA_REF", rules.git_ref, "Its tag or commit; else the newest, once."),
    Field("PERSISTENT_PEERS", rules.peers, "Nodes of the chain, ID@host:port, commas between."),
    Field(
        "PUBLIC_URL", rules.url, "Where the world reaches it [default: http://SERVER_IP:API_PORT]."
    ),
    Field("API_PORT", rules.port, "Port of its API.", "8000"),
    Field("POC_CALLBACK_URL", rules.url, "Where proofs are sent.", "http://api:9100"),
    Field(
        "PRUNING_STRATEGY",
        rules.one_of("custom", "default", "nothing", "everything"),
        "Pruning of the chain.",
        "custom",
    ),
    Field("PRUNING_KEEP_RECENT", rules.whole, "Heights that are kept.", "1000"),
    Field("PRUNING_INTERVAL", rules.whole, "Heights between two prunings.", "100"),
    Field("STATE_SYNC", rules.one_of("on", "off"), "Start from a snapshot of the chain.", "on"),
    Field("ADMIN_KEYS", rules.local_path, "File of public keys that may log in, too."),
    Field("INSTALL", rules.one_of("yes", "no"), "Install missing packages by apt.", "no"),
    Field("MONITORING", rules.one_of("on", "off"), "Prometheus beside it.", "off"),
    Field("POCQUEUE_ROLE", rules.roles, "What pocqueue is there: worker,scheduler,io,…."),
    Field("POCQUEUE_RUN", rules.one_of("systemd", "compose"), "What runs it.", "systemd"),
    Field("POCQUEUE_IMAGE", rules.image, "Its image by digest, for compose."),
    Field("POCQUEUE_GPUS", rules.numbers, "Its workers' GPUs: 0,1.", "0"),
    Field("POCQUEUE_MODEL", rules.model_or_folder, "Its workers' model.", "embedded"),
    Field("POCQUEUE_REDIS_URL_FILE", rules.local_path, "File with its Redis URL, mode 0600."),
    Field("POCQUEUE_ENV_FILE", rules.local_path, "File with more of its variables, mode 0600."),
)

_BY_NAME = {field.name: field for field in FIELDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """What one conf file says, each field by its name in lower case; paths of this machine are absolute."""

    #: The file.
    path: Path
    #: What a person should mend, a sentence each; no reason to stop.
    warnings: tuple[str, ...]
    server_ip: str
    ssh_user: str
    ssh_port: int
    ssh_key: Path | None
    ssh_host_key: str | None
    ssh_jump: rules.Jump | None
    key_name: str
    #: None: to be asked for when it is needed.
    keyring_password: Secret | None
    account_pubkey: str
    cold_key_name: str
    model_name: str
    model_revision: str | None
    seed_api_url: str
    #: x1, x8 or a file.
    node_config_profile: str | Path
    volume_device: str
    volume_mount: str
    volume_format: str
    volume_min_gb: int
    hf_home: str
    gonka_path: str
    gonka_ref: str | None
    persistent_peers: tuple[str, ...]
    public_url: str
    api_port: int
    poc_callback_url: str
    pruning_strategy: str
    pruning_keep_recent: int
    pruning_interval: int
    state_sync: str
    admin_keys: Path | None
    install: str
    monitoring: str
    #: Empty: pocqueue is not deployed there.
    pocqueue_role: tuple[str, ...]
    pocqueue_run: str
    pocqueue_image: str | None
    pocqueue_gpus: tuple[int, ...]
    pocqueue_model: str
    pocqueue_redis_url_file: Path | None
    pocqueue_env_file: Path | None

    @property
    def folder(self) -> Path:
        """Folder of the node's files, beside the conf file."""
        return self.path.parent / self.key_name

    @property
    def logs(self) -> Path:
        """Folder of its logs: ``logs`` beside ``nodes``."""
        parent = self.path.parent
        return (parent.parent if parent.name == "nodes" else parent) / "logs"

    @property
    def server(self) -> str:
        """Who and where, for people."""
        place = f"[{self.server_ip}]" if ":" in self.server_ip else self.server_ip
        return f"{self.ssh_user}@{place}" + (f":{self.ssh_port}" if self.ssh_port != 22 else "")

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Return all that must not be shown."""
        return (self.keyring_password,) if self.keyring_password else ()


def read_conf(path: Path) -> Conf:
    """Return what a conf file says, with the files that it names looked at.

    Raises:
        ConfError: the file cannot be read, or something in it is not allowed; no secret is in the message.
    """
    path = path.absolute()
    try:
        # O_NONBLOCK: a named pipe is refused and not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            data = file.read(MAX_BYTES + 1) if stat.S_ISREG(mode) else None
    except OSError as exc:
        raise ConfError(path, [Problem(0, "", f"it cannot be read ({exc.strerror}).")]) from None
    if data is None:
        raise ConfError(path, [Problem(0, "", "it is no file.")])
    warnings = []
    if mode & 0o077 and _PASSWORD.encode() + b"=" in data:
        warnings.append(
            f"{path} has a password in it and others can read it (mode {stat.S_IMODE(mode):04o}): --fix-modes, or chmod 600 {path}"
        )
    return parse_conf(data, path, warnings)


def make_private(path: Path) -> None:
    """Let nobody but its owner use a conf file.

    Raises:
        ConfError: it is no file, a link, or another user's.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb"):
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                os.fchmod(fd, 0o600)
    except OSError as exc:
        raise ConfError(
            path, [Problem(0, "", f"its mode cannot be made 0600 ({exc.strerror}).")]
        ) from None


def parse_conf(data: bytes, path: Path, warnings: list[str] | None = None) -> Conf:
    """Return what the content of a conf file says.

    Args:
        data: the content.
        path: an absolute one, which relative paths in it start from.
        warnings: those that there are already.

    Raises:
        ConfError: as `read_conf`.
    """
    warnings = list(warnings or ())
    texts, problems = read_texts(data)
    values: dict[str, Any] = {}
    for field in FIELDS:
        line, text = texts.get(field.name, (0, ""))
        if not text and field.needed and field.name not in {p.field for p in problems}:
            problems.append(Problem(line, field.name, f"{field.name} is missing: {field.help}"))
        values[field.name.lower()] = None
        if text or field.default:
            try:
                values[field.name.lower()] = field.rule(text or field.default)
            except ValueError as exc:
                problems.append(_refused(line, field.name, text, str(exc)))
    if not problems:
        problems += _look_at_files(values, texts, path)
    if not problems:
        problems += _fill(values, texts, warnings)
    if problems:
        raise ConfError(
            path, sorted(problems, key=lambda problem: (problem.line == 0, problem.line))
        )
    return Conf(path=path, warnings=tuple(warnings), **values)


def _refused(line: int, name: str, text: str, allowed: str) -> Problem:
    said = "'…'" if name == _PASSWORD else shown(name, text)
    return Problem(line, name, f"{name} is {said}; allowed: {allowed}.")


def read_texts(data: bytes) -> tuple[dict[str, tuple[int, str]], list[Problem]]:
    """Return line and text of each field of ours, and what is wrong with the lines themselves."""
    from dotenv.parser import parse_stream

    def whole(text: str, line: int = 0) -> tuple[dict[str, tuple[int, str]], list[Problem]]:
        return {}, [Problem(line, "", text)]

    if len(data) > MAX_BYTES:
        return whole(f"the file is larger than {MAX_BYTES // 1024} KiB.")
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        return whole("it is not UTF-8 text.", data.count(b"\n", 0, exc.start) + 1)
    if content.startswith("\ufeff"):
        return whole("there is a byte order mark before the first character: save it without.", 1)
    if strange := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", content):
        what = (
            "ends of lines of Windows (CR)" if strange[0] == "\r" else f"a character {strange[0]!r}"
        )
        line = content.count("\n", 0, strange.start()) + 1
        # The field's name is in front of the character, where there is one.
        begun = content[: strange.start()].rpartition("\n")[2]
        name = re.match(r"\s*(?:export\s+)?(\w+)", begun)
        return whole(
            f"{name[1] if name else 'it'} has {what}; allowed: plain lines, each with its \\n.",
            line,
        )
    texts: dict[str, tuple[int, str]] = {}
    problems: list[Problem] = []
    for found in parse_stream(io.StringIO(content)):
        line = line_of(found)
        if found.error:
            problems.append(Problem(line, "", "it is no NAME=value, or a quote is not closed."))
        elif found.key is not None:
            if problem := _misplaced(found.key, found.value, line, texts):
                problems.append(problem)
            else:
                texts[found.key] = (line, found.value or "")
    return texts, problems


def _misplaced(
    name: str, value: str | None, line: int, texts: dict[str, tuple[int, str]]
) -> Problem | None:
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name.upper(), _BY_NAME, 1)
        meant = (
            f"; did you mean {near[0]}?"
            if near
            else ": `pocqueue deploy new` writes all there are."
        )
        return Problem(line, name[:64], f"{name[:64]!r} is no field{meant}")
    if name in texts:
        return Problem(
            line, name, f"{name} is there twice, in line {texts[name][0]}, too; leave one."
        )
    if value is None:
        return Problem(line, name, f"{name} has no = behind it.")
    # Of escapes in double quotes: a field is one line.
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", value):
        return Problem(
            line,
            name,
            f"{name} has a control character or a line break in it; allowed: one line of text.",
        )
    return None


def _look_at_files(
    values: dict[str, Any], texts: dict[str, tuple[int, str]], path: Path
) -> list[Problem]:
    """Make paths of this machine absolute, and read the password's file; return what is wrong."""
    problems = []
    for name in (
        *("SSH_KEY", "ADMIN_KEYS", "NODE_CONFIG_PROFILE", "KEYRING_PASSWORD_FILE"),
        *("POCQUEUE_REDIS_URL_FILE", "POCQUEUE_ENV_FILE"),
    ):
        given = values[name.lower()]
        if isinstance(given, Path):
            values[name.lower()] = file = path.parent / given
            if not file.is_file():
                problems.append(_refused(texts[name][0], name, str(file), "a file that is there"))
    file = values.pop("keyring_password_file")
    if file is None or problems:
        return problems
    line = texts["KEYRING_PASSWORD_FILE"][0]

    def wrong(allowed: str) -> list[Problem]:
        return [_refused(line, "KEYRING_PASSWORD_FILE", str(file), allowed)]

    if values["keyring_password"] is not None:
        return [
            Problem(
                line,
                "KEYRING_PASSWORD_FILE",
                "there is a KEYRING_PASSWORD, too: leave one of them.",
            )
        ]
    try:
        text = read_private(file, 4096).decode("utf-8").removesuffix("\n")
        values["keyring_password"] = rules.password(text)
    except NotPrivate:
        return wrong("a file of mode 0600")
    except (OSError, UnicodeDecodeError):
        return wrong("a file with a line of text that can be read")
    except ValueError as exc:
        return wrong(f"in the file, {exc}")
    return []


def _fill(
    values: dict[str, Any], texts: dict[str, tuple[int, str]], warnings: list[str]
) -> list[Problem]:
    """Give a value to fields whose default is made of others; return what does not fit together."""
    problems = []
    if values["keyring_password"] is not None:
        values["keyring_password"] = Secret(_PASSWORD, values["keyring_password"])
    mount = values["volume_mount"]
    for name, below in (("HF_HOME", "hf"), ("GONKA_PATH", "gonka")):
        given = values[name.lower()] or f"{mount}/{below}"
        if not given.startswith(f"{mount}/"):
            problems.append(
                _refused(texts[name][0], name, given, f"a folder below VOLUME_MOUNT, {mount}")
            )
        values[name.lower()] = given
    if values["hf_home"] == values["gonka_path"]:
        problems.append(Problem(0, "HF_HOME", "HF_HOME and GONKA_PATH are the same folder."))
    server = values["server_ip"]
    place = f"[{server}]" if ":" in server else server
    values["public_url"] = values["public_url"] or f"http://{place}:{values['api_port']}"
    values["persistent_peers"] = values["persistent_peers"] or ()
    values["pocqueue_role"] = values["pocqueue_role"] or ()
    if not values["model_name"].startswith("Qwen/"):
        warnings.append(f"MODEL_NAME is {values['model_name']}: the network's models are of Qwen/.")
    return problems
