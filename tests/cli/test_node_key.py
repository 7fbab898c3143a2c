"""`pocqueue node key` and `pocqueue node verify`: what is made, printed and refused."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.errors import KeyFileError, ProofFileError, SignatureError
from pocqueue.node.keys import SigningKey
from pocqueue.node.signing import sign_body
from pocqueue.poc.data import ProofBatch

KEY = SigningKey.generate()
OTHER = SigningKey.generate()


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["node", *arguments], input=stdin)


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, whatever the environment says."""
    for name in [name for name in os.environ if name.startswith("POCQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def signed(number: int = 1, key: SigningKey = KEY) -> dict[str, Any]:
    return sign_body(asdict(ProofBatch("pk", "bh", 7, [number, number + 1], [0.5, 0.25], 0)), key)


def test_new_key_in_the_state_folder(state_dir: Path) -> None:
    """In a folder and a file that are the owner's only; `show` finds it."""
    done = run("key", "new")
    path = state_dir / "node-key.pem"
    key = SigningKey.load(path)
    assert done.output.splitlines()[:2] == [
        f"Signing key: {path}",
        f"Public key:  {key.public_hex}",
    ]
    assert state_dir.stat().st_mode & 0o777 == 0o700
    assert run("key", "show").output == f"{key.public_hex}\n"
    assert json.loads(run("key", "show", "--json").output) == {
        "path": str(path),
        "public_key": key.public_hex,
    }


def test_new_key_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the option, or by the variable."""
    made = json.loads(run("key", "new", "--out", str(tmp_path / "a.pem"), "--json").output)
    assert made == {"path": str(tmp_path / "a.pem"), "public_key": made["public_key"]}
    assert run("key", "show", "--key", made["path"]).output.strip() == made["public_key"]
    monkeypatch.setenv("POCQUEUE_NODE_KEY", str(tmp_path / "b.pem"))
    run("key", "new")
    assert run("key", "show").output.strip() == SigningKey.load(tmp_path / "b.pem").public_hex


def test_keys_are_never_overwritten(state_dir: Path) -> None:
    """The second `new` is refused, and the first key stays."""
    run("key", "new")
    before = (state_dir / "node-key.pem").read_bytes()
    assert isinstance(run("key", "new").exception, KeyFileError)
    assert (state_dir / "node-key.pem").read_bytes() == before


def test_no_secret_is_printed(state_dir: Path) -> None:
    """By neither command, in either form."""
    outputs = [run("key", "new").output]
    outputs += [run("key", "show").output, run("key", "show", "--json").output]
    content = (state_dir / "node-key.pem").read_bytes()
    key = serialization.load_pem_private_key(content, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret, pem = key.private_numbers().private_value, content.decode().splitlines()[1]
    assert not any(f"{secret:x}" in out or pem in out for out in outputs)


def test_key_that_is_not_there(tmp_path: Path) -> None:
    """`show` says how to make one; a folder that cannot be made is named."""
    assert "pocqueue node key new" in str(run("key", "show").exception)
    (tmp_path / "state").touch()
    assert "cannot be made" in str(run("key", "new").exception)


@pytest.mark.parametrize("form", ["one", "indented", "list", "lines"])
def test_good_batches(tmp_path: Path, form: str) -> None:
    """One body, however it is laid out, a list of them, or one on each line; from a file or stdin."""
    bodies = [signed(1), signed(5), signed(9, OTHER)] if form in {"list", "lines"} else [signed()]
    text = {
        "one": lambda: json.dumps(bodies[0]),
        "indented": lambda: json.dumps(bodies[0], indent=2) + "\n",
        "list": lambda: json.dumps(bodies, indent=2),
        "lines": lambda: "\n".join(map(json.dumps, bodies)) + "\n\n",
    }[form]()
    (tmp_path / "file").write_text(text)
    done = run("verify", str(tmp_path / "file"))
    assert done.exit_code == 0
    assert run("verify", "-", stdin=text).output == done.output
    if len(bodies) == 1:
        assert done.output.splitlines() == [
            f"1 batch, 2 nonces: {KEY.public_hex}",
            "1 batch with 2 nonces verified, 0 not.",
        ]
    else:
        assert done.output.splitlines() == [
            f"2 batches, 4 nonces: {KEY.public_hex}",
            f"1 batch, 2 nonces: {OTHER.public_hex}",
            "3 batches with 6 nonces verified, 0 not.",
        ]


def test_bad_batches(tmp_path: Path) -> None:
    """Each is named with its place and reason, and the others count."""
    bodies = [signed(), signed() | {"nonces": [1, 3]}, {"nonces": []}, [1]]
    (tmp_path / "file").write_text("\n".join(map(json.dumps, bodies)))
    done = run("verify", str(tmp_path / "file"))
    assert done.exit_code == 1
    assert "line 2: The signature is not that of" in done.output
    assert "line 3: The batch is not signed" in done.output
    assert "line 4: It is no JSON object" in done.output
    assert "1 batch with 2 nonces verified, 3 not." in done.output
    (tmp_path / "file").write_text(json.dumps(bodies))
    report = json.loads(run("verify", str(tmp_path / "file"), "--json").stdout)
    assert (report["batches"], report["nonces"]) == (1, 2)
    assert report["signers"] == {KEY.public_hex: {"batches": 1, "nonces": 2}}
    assert [problem["where"] for problem in report["problems"]] == ["index 1", "index 2", "index 3"]


def test_one_signer_is_asked_for(tmp_path: Path) -> None:
    """Another's batch is wrong, whoever signed it; what is no public key is bad input."""
    (tmp_path / "file").write_text(json.dumps([signed(), signed(3, OTHER)]))
    done = run("verify", str(tmp_path / "file"), "--signer", KEY.public_hex)
    assert done.exit_code == 1
    assert f"index 1: The batch is signed by '{OTHER.public_hex}'" in done.output
    bad = run("verify", str(tmp_path / "file"), "--signer", "me")
    assert isinstance(bad.exception, SignatureError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "is empty"),
        (b"{", "is no JSON"),
        (b"hello", "is no JSON"),
        (b'{}\n{"a": 1', "Line 2 of"),
        (b'{"nonces": [NaN]}', "NaN is no JSON"),
        (b'{"dist": [0.1], "dist": [0.2]}', "the field 'dist' is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "no UTF-8 text"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    """Nothing is verified; the sentence says what is wrong with the file."""
    (tmp_path / "file").write_bytes(content)
    error = run("verify", str(tmp_path / "file")).exception
    assert isinstance(error, ProofFileError)
    assert words in str(error)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """Nor a folder in its place."""
    for path in (tmp_path / "none", tmp_path):
        done = run("verify", str(path))
        assert done.exit_code == 2
        assert f"'{path}'" in done.output
