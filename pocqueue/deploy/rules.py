"""What a field of a conf file may be: functions from its text to its value, each for one kind of field.

All raise `ValueError` with what is allowed, in words that go behind "allowed:".
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
#: Folders of the system: a disk that is mounted over one of them hides what is in it.
_SYSTEM = {
    *(
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "root",
        "run",
        "sbin",
    ),
    *("sys", "tmp", "usr", "var", "mnt", "media", "opt", "srv"),
}
#: Below these nothing is mounted by us at all.
_NEVER_BELOW = {
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib64",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
}


def matching(expression: str, text: str, allowed: str) -> str:
    """Return a text that is, as a whole, of a form of ASCII characters."""
    if not re.fullmatch(expression, text, re.ASCII):
        raise ValueError(allowed)
    return text


def host(text: str) -> str:
    """Return an address or a name of a host; an address in its usual form."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        last = text.rpartition(".")[2]
        # A name whose last part is a number is an address with a mistake in it: 999.1.1.1.
        if len(text) > 253 or not _HOST_NAME.fullmatch(text) or last.isdigit():
            raise ValueError("an IP address, or a host name of letters, digits, - and .") from None
        return text.lower()
    if address.is_unspecified or address.is_multicast:
        raise ValueError("the address of one host") from None
    return str(address)


def port(text: str) -> int:
    """Return a port."""
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise ValueError("a port from 1 to 65535")
    return int(text)


def whole(text: str) -> int:
    """Return a whole number."""
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise ValueError("a whole number")
    return int(text)


class Jump(NamedTuple):
    """A host that the connection goes through."""

    #: Empty: the same as on the server.
    user: str
    host: str
    port: int


def jump(text: str) -> Jump:
    """Return ``[user@]host[:port]``."""
    who, at, place = text.rpartition("@")
    name, colon, number = (place, "", "") if place.endswith("]") else place.rpartition(":")
    if not colon:
        name = place
    try:
        return Jump(user(who) if at else "", host(name), port(number) if colon else 22)
    except ValueError:
        raise ValueError("[user@]host[:port]") from None


def user(text: str) -> str:
    """Return a login name."""
    return matching(r"[a-z_][a-z0-9_-]{0,31}", text, "a login name of a-z, 0-9, _ and -, up to 32")


def key_name(text: str) -> str:
    """Return a name that is a folder, a key's name and an argument."""
    return matching(
        r"[a-z0-9][a-z0-9-]{0,62}", text, "a-z, 0-9 and -, up to 63, the first one no -"
    )


def cold_key_name(text: str) -> str:
    """Return the name of a key in a keyring of this machine, which is an argument."""
    allowed = "letters, digits and ._-, up to 63, the first one a letter or digit"
    return matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text, allowed)


def fingerprint(text: str) -> str:
    """Return the fingerprint of a host key, as `ssh-keygen -l` prints it."""
    return matching(r"SHA256:[A-Za-z0-9+/]{43}", text, "SHA256: and 43 characters of base64")


def password(text: str) -> str:
    """Return a password that a shell and compose read alike from ``'…'``."""
    if "'" in text or "\\" in text:
        raise ValueError("no ' and no \\ in it: shells and compose read these differently")
    if not 8 <= len(text) <= 128 or not text.isprintable():
        raise ValueError("8 to 128 printable characters")
    return text


def public_key(text: str) -> str:
    """Return a compressed secp256k1 key in base64, as wallets print it."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 33 or raw[0] not in {2, 3}:
        raise ValueError("base64 of 33 bytes, of which the first is 02 or 03") from None
    return text


def model(text: str) -> str:
    """Return the id of a model on the hub."""
    matching(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", text, "OWNER/NAME of a model on the hub")
    if ".." in text or text.endswith((".", "/.")):
        raise ValueError("OWNER/NAME of a model on the hub")
    return text


def commit(text: str) -> str:
    """Return a revision by its commit."""
    return matching(r"[0-9a-f]{40}", text, "40 hex digits, lower case")


def git_ref(text: str) -> str:
    """Return a tag, a branch or a commit."""
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", text, "a tag or a commit: letters, digits and ._/-"
    )
    if ".." in text or "//" in text or text.endswith((".", "/", ".lock")):
        raise ValueError("a tag or a commit, by git's rules")
    return text


def url(text: str) -> str:
    """Return an http or https URL without user, query and fragment, and without a slash at its end."""
    allowed = "http:// or https:// with a host, without user, query and fragment"
    try:
        parts = urlsplit(text)
        number = parts.port
    except ValueError:
        raise ValueError(allowed) from None
    plain = not re.search(r"[\s\"'`$\\<>{}|^]", text) and text.isascii()
    if (
        not plain
        or parts.scheme not in {"http", "https"}
        or "@" in parts.netloc
        or "?" in text
        or "#" in text
    ):
        raise ValueError(allowed)
    try:
        host(parts.hostname or "")
    except ValueError:
        raise ValueError(allowed) from None
    if number == 0:
        raise ValueError(allowed)
    return text.rstrip("/")


def device(text: str) -> str:
    """Return the path of a disk or of a partition."""
    matching(
        r"/dev/[A-Za-z0-9][A-Za-z0-9_.:+-]*(?:/[A-Za-z0-9][A-Za-z0-9_.:+-]*){0,3}",
        text,
        "/dev/… of a disk or a partition",
    )
    return text


def folder(text: str) -> str:
    """Return an absolute folder on the server, of characters that fstab and shells take as they are."""
    allowed = "an absolute path of letters, digits and ._-, without . and .."
    matching(r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+", text.rstrip("/") or "/x", allowed)
    if text.rstrip("/") != str(PurePosixPath(text)) or ".." in text:
        raise ValueError(allowed)
    return str(PurePosixPath(text))


def mount_point(text: str) -> str:
    """Return a folder that a disk may be mounted on."""
    allowed = "a folder such as /mnt/ssd, not the system's"
    if text.strip("/") == "":
        raise ValueError(allowed)
    parts = PurePosixPath(folder(text)).parts[1:]
    if parts[0] in _NEVER_BELOW or (len(parts) == 1 and parts[0] in _SYSTEM):
        raise ValueError(allowed)
    return str(PurePosixPath(text))


def peers(text: str) -> tuple[str, ...]:
    """Return nodes of the chain: ``40 hex digits@host:port``, with commas between them."""
    found = []
    for peer in filter(None, (part.strip() for part in text.split(","))):
        node_id, _, place = peer.partition("@")
        name, _, number = place.rpartition(":")
        try:
            matching(r"[0-9a-fA-F]{40}", node_id, "")
            host(name)
            port(number)
        except ValueError:
            raise ValueError("40 hex digits@host:port, with commas between the peers") from None
        found.append(peer)
    return tuple(found)


def local_path(text: str) -> Path:
    """Return a path on this machine; ``~/`` is the home folder."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def profile(text: str) -> str | Path:
    """Return ``x1``, ``x8``, or the path of a JSON file."""
    if text in {"x1", "x8"}:
        return text
    if not text.endswith(".json"):
        raise ValueError("x1, x8, or the path of a .json file")
    return local_path(text)


#: What a machine can do for pocqueue.
ROLES = ("redis", "scheduler", "worker", "io", "delegation", "hosts", "agent")


def roles(text: str) -> tuple[str, ...]:
    """Return what a machine does for pocqueue, in the order of `ROLES`."""
    found = {part.strip() for part in text.split(",")}
    if not found <= set(ROLES):
        raise ValueError(f"of {', '.join(ROLES)}, with commas between them")
    return tuple(role for role in ROLES if role in found)


def numbers(text: str) -> tuple[int, ...]:
    """Return numbers of GPUs, each once."""
    parts = [part.strip() for part in text.split(",")]
    if len(set(parts)) < len(parts) or not all(
        re.fullmatch(r"0|[1-9][0-9]{0,2}", part, re.ASCII) for part in parts
    ):
        raise ValueError("numbers from 0 to 999, each once, with commas between them")
    return tuple(map(int, parts))


def image(text: str) -> str:
    """Return an image that is named by its content: of a registry, or one that the server has."""
    name = r"[a-z0-9][a-z0-9._-]*(?::[0-9]{1,5})?(?:/[a-z0-9][a-z0-9._-]*)*(?::[\w.-]{1,128})?@"
    return matching(
        rf"(?:{name})?sha256:[0-9a-f]{{64}}", text, "NAME@sha256:… or sha256:…, 64 hex digits"
    )


def model_or_folder(text: str) -> str:
    """Return what pocqueue's workers load: ``embedded``, a folder on the server, or a model of the hub."""
    if text == "embedded":
        return text
    return folder(text) if text.startswith("/") else model(text)


def one_of(*words: str) -> Callable[[str], str]:
    """Return a rule: one of some words."""

    def rule(text: str) -> str:
        if text not in words:
            raise ValueError(", ".join(words))
        return text

    return rule
