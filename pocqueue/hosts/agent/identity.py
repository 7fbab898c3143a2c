"""Who an agent is to one server: a key that it made itself, and the node id that the server gave it.

Each server has a folder of its own, by its host name. The key is ed25519, in a file of mode 0600 that is never
overwritten; the server knows its public half alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from nacl.signing import SigningKey

from pocqueue.files import NotPrivate, read_private, replace_file
from pocqueue.hosts.agent.errors import IdentityError
from pocqueue.hosts.protocol import origin_of, rotation_text, signed_text

KEY_NAME = "node-key.pem"
#: The key that is to take its place, from before the server is told of it until the server has said that it counts.
NEXT_KEY_NAME = "node-key.next.pem"
_NODE_NAME = "node.json"
_MAX_FILE_BYTES = 64 * 1024
# RFC 8410, section 7: all of the file that is not the 32 secret bytes, which stand at its end.
_BEGIN, _END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
_DER = bytes.fromhex("302e020100300506032b657004220420")


@dataclass(slots=True)
class Identity:
    """An agent's key and node id at one server. Made by `open`; shows neither key nor token."""

    folder: Path
    origin: str  #: name of the server, which is part of what is signed
    node_id: str  #: empty: not registered yet
    _token_hash: str = field(repr=False)
    _private: SigningKey = field(repr=False)
    _next: SigningKey | None = field(default=None, repr=False)

    @classmethod
    def open(cls, state_dir: Path, endpoint: str) -> Identity:
        """Read what there is of a server, and make a key if there is none.

        Raises:
            IdentityError: a file cannot be read or written, is none of ours, or others can read the key.
        """
        origin = origin_of(endpoint)
        folder = state_dir / "agent" / re.sub(r"[^\w.-]", "_", origin)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = folder / KEY_NAME
            if not key.exists():
                _make_key(key)
            private = _read_key(key)
            following = folder / NEXT_KEY_NAME
            next_key = _read_key(following) if following.exists() else None
            node = folder / _NODE_NAME
            known = json.loads(node.read_bytes()) if node.exists() else {}
            node_id, token = str(known.get("nodeId", "")), str(known.get("token", ""))
            return cls(folder, origin, node_id, token, private, next_key)
        except IdentityError:
            raise
        except OSError as exc:
            raise IdentityError(
                f"The agent's folder {folder} cannot be used ({exc.strerror}): mend it, or set POCQUEUE_STATE_DIR "
                "to another."
            ) from None
        except (ValueError, AttributeError):
            raise IdentityError(
                f"{folder / _NODE_NAME} is damaged: remove it, and register with a new token."
            ) from None

    @property
    def public_hex(self) -> str:
        """The public half of the key, 64 hex digits."""
        return _public_hex(self._private)

    def sign(self, node_id: str, nonce: str) -> str:
        """Return the signature of a challenge, 128 hex digits.

        Args:
            node_id: as in the message that it is sent in; empty in `register`.
            nonce: of the challenge.
        """
        return self._private.sign(signed_text(self.origin, node_id, nonce)).signature.hex()

    def sign_next(self, node_id: str, nonce: str) -> str | None:
        """Return the same by the next key; None: there is none."""
        text = signed_text(self.origin, node_id, nonce)
        return None if self._next is None else self._next.sign(text).signature.hex()

    def make_next_key(self) -> None:
        """Make the key that is to take the place of ours, if there is none yet: on the disk before anybody knows it.

        Raises:
            IdentityError: it cannot be written.
        """
        path = self.folder / NEXT_KEY_NAME
        try:
            if not path.exists():
                _make_key(path)
            _sync(self.folder)
            self._next = _read_key(path)
        except OSError as exc:
            raise _unwritable(path, exc) from None

    def next_key(self) -> tuple[str, str] | None:
        """Return the public half of the next key and its signature, as `NewKey` has them; None: there is none."""
        if self._next is None:
            return None
        public = _public_hex(self._next)
        text = rotation_text(self.origin, self.node_id, public)
        return public, self._next.sign(text).signature.hex()

    def settle(self, public_hex: str) -> None:
        """Hear which key the server knows: the next one takes the place of ours then.

        Raises:
            IdentityError: the files cannot be changed; both keys are as they were.
        """
        if self._next is None or public_hex != _public_hex(self._next):
            return
        path = self.folder / KEY_NAME
        try:
            (self.folder / NEXT_KEY_NAME).replace(path)
            _sync(self.folder)
        except OSError as exc:
            raise _unwritable(path, exc) from None
        self._private, self._next = self._next, None

    def has_used(self, token: str) -> bool:
        """Say whether this node was registered with a token."""
        return bool(self.node_id) and self._token_hash == _hash(token)

    def registered(self, node_id: str, token: str | None) -> None:
        """Note what the server has said, on disk.

        Args:
            node_id: who we are.
            token: that it was registered with; None: it came back by its key.

        Raises:
            IdentityError: it cannot be written.
        """
        token_hash = self._token_hash if token is None else _hash(token)
        if (node_id, token_hash) == (self.node_id, self._token_hash):
            return
        path = self.folder / _NODE_NAME
        try:
            replace_file(path, json.dumps({"nodeId": node_id, "token": token_hash}).encode())
        except OSError as exc:
            raise _unwritable(path, exc) from None
        self.node_id, self._token_hash = node_id, token_hash


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _public_hex(key: SigningKey) -> str:
    return key.verify_key.encode().hex()


def _unwritable(path: Path, exc: OSError) -> IdentityError:
    return IdentityError(
        f"{path} cannot be written ({exc.strerror}): make room, or mend its folder."
    )


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_key(path: Path) -> None:
    """Write a new key: wholly there, or not at all, and never in place of another one."""
    text = base64.b64encode(_DER + SigningKey.generate().encode()).decode()
    pem = "\n".join([_BEGIN, text, _END, ""]).encode()
    made = path.with_name(f"{path.name}.{os.getpid()}")
    replace_file(made, pem)
    try:
        os.link(made, path)
    except FileExistsError:
        pass  # another agent was faster; its key is taken
    finally:
        made.unlink()


def _read_key(path: Path) -> SigningKey:
    try:
        pem = read_private(path, _MAX_FILE_BYTES)
    except NotPrivate as exc:
        if exc.permissions is None:
            reason = f"{path} is no file: move it away, and a new key is made."
        else:
            reason = (
                f"Others than its owner may use the node key {path} (mode {exc.permissions:04o}): take that away "
                f"with `chmod 600 {path}`."
            )
        raise IdentityError(reason) from None
    key = _key_of(pem)
    if key is None:
        raise IdentityError(
            f"{path} holds no ed25519 key: restore it from a copy, or move it away and register with a new token."
        )
    return key


def _key_of(pem: bytes) -> SigningKey | None:
    """Return the key in a file; None: there is no ed25519 key in it."""
    text = pem.decode("ascii", "replace").strip()
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        return None
    try:
        der = base64.b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    except ValueError:
        return None
    if not der.startswith(_DER) or len(der) != len(_DER) + 32:
        return None
    return SigningKey(der[len(_DER) :])
