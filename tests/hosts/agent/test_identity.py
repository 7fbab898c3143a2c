"""The key of an agent, and what it knows of its node."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pocqueue.hosts.agent.errors import IdentityError
from pocqueue.hosts.agent.identity import KEY_NAME, NEXT_KEY_NAME, Identity

ENDPOINT = "wss://Hosts.example.com:443/ws"


def test_a_key_is_made_once_for_each_server(tmp_path: Path) -> None:
    """In a file of its owner's alone; another server sees another key."""
    first, again = Identity.open(tmp_path, ENDPOINT), Identity.open(tmp_path, ENDPOINT)
    assert first.public_hex == again.public_hex
    assert first.public_hex != Identity.open(tmp_path, "ws://other:3002").public_hex
    assert stat.S_IMODE((first.folder / KEY_NAME).stat().st_mode) == 0o600
    assert sorted(path.name for path in first.folder.iterdir()) == [KEY_NAME]
    assert "PRIVATE" not in repr(first)


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_the_file_is_a_usual_one(tmp_path: Path) -> None:
    """Other programs read it, and one that another program has made is taken."""
    one = Identity.open(tmp_path, ENDPOINT)
    path = one.folder / KEY_NAME
    same = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(same, ed25519.Ed25519PrivateKey)
    assert same.public_key().public_bytes_raw().hex() == one.public_hex
    assert _pem(same) == path.read_bytes()
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(_pem(other))
    found = Identity.open(tmp_path, ENDPOINT)
    assert found.public_hex == other.public_key().public_bytes_raw().hex()


def test_what_is_signed_names_the_server_and_the_node(tmp_path: Path) -> None:
    """So that a signature is of no use anywhere else."""
    one = Identity.open(tmp_path, ENDPOINT)
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(one.public_hex))
    signature = bytes.fromhex(one.sign("node-7", "abc"))
    key.verify(signature, b"pocqueue-node-1\nhosts.example.com\nnode-7\nabc")


def test_a_node_is_remembered_with_its_token(tmp_path: Path) -> None:
    """As a hash: the token itself is nowhere on the disk."""
    one = Identity.open(tmp_path, ENDPOINT)
    assert not one.has_used("token")
    one.registered("node-7", "token")
    one.registered("node-7", None)
    again = Identity.open(tmp_path, ENDPOINT)
    assert (again.node_id, again.has_used("token"), again.has_used("new")) == (
        "node-7",
        True,
        False,
    )
    for path in again.folder.iterdir():
        assert b'"token"}' not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_replaced_when_the_server_has_the_next_one(tmp_path: Path) -> None:
    """Until then both are there, whatever ends in between, and both sign."""
    one = Identity.open(tmp_path, ENDPOINT)
    one.registered("node-7", "token")
    old = one.public_hex
    assert one.next_key() is None
    assert one.sign_next("node-7", "abc") is None
    one.make_next_key()
    made = one.next_key()
    assert made is not None
    again = Identity.open(tmp_path, ENDPOINT)
    for _ in range(2):  # what was begun is gone on with
        again.make_next_key()
        assert again.next_key() == made
    following = Ed25519PublicKey.from_public_bytes(bytes.fromhex(made[0]))
    text = f"pocqueue-node-key-1\nhosts.example.com\nnode-7\n{made[0]}"
    following.verify(bytes.fromhex(made[1]), text.encode())
    signature = bytes.fromhex(again.sign_next("node-7", "abc") or "")
    following.verify(signature, b"pocqueue-node-1\nhosts.example.com\nnode-7\nabc")
    assert stat.S_IMODE((again.folder / NEXT_KEY_NAME).stat().st_mode) == 0o600
    for other in ("", old):
        again.settle(other)
        assert again.public_hex == old
    again.settle(made[0])
    assert again.public_hex == Identity.open(tmp_path, ENDPOINT).public_hex == made[0]
    assert again.next_key() is None
    assert not (again.folder / NEXT_KEY_NAME).exists()
    assert again.node_id == "node-7"
    assert "PRIVATE" not in repr(again)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda key: key.chmod(0o644), "take that away with `chmod 600"),
        (lambda key: key.write_text("no key"), "holds no ed25519 key"),
        (lambda key: key.write_bytes(key.read_bytes()[:70]), "holds no ed25519 key"),
        (
            lambda key: key.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1()))),
            "holds no ed25519 key",
        ),
        (lambda key: (key.parent / "node.json").write_text("{"), "is damaged"),
        (lambda key: (key.parent / "node.json").write_text("[]"), "is damaged"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(tmp_path: Path, spoil: object, words: str) -> None:
    """With what to do."""
    key = Identity.open(tmp_path, ENDPOINT).folder / KEY_NAME
    assert callable(spoil)
    spoil(key)
    with pytest.raises(IdentityError, match=words):
        Identity.open(tmp_path, ENDPOINT)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "agent").touch()
    with pytest.raises(IdentityError, match="cannot be used"):
        Identity.open(tmp_path, ENDPOINT)
