"""The wallet as it lies on the server: accounts by the names of files, and what a failed try has said."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.facts.keys import KeyringFacts
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.facts.wallet import WalletFacts, WalletPlace, read_wallet, wallet_facts

ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
ACCOUNT = "f2d90df13bcb98e4922d4985efa9f2dfef79eb20"
WORDS = " ".join(["error", "device", "salmon", *["wage"] * 21])


def read(folder: Path) -> tuple[WalletFacts, str]:
    """Return what is read of a folder, and the text of it."""
    argv = wallet_facts(WalletPlace(str(folder), str(folder / "ours"), "me")).argv()
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return read_wallet(done.stdout), done.stdout


def test_accounts_are_read_without_a_password(tmp_path: Path) -> None:
    """From the names of the keyring's files."""
    (tmp_path / "docker-compose.yml").touch()
    assert read(tmp_path)[0] == WalletFacts(KeyringFacts(frozenset()))
    ring = tmp_path / ".inference" / "keyring-file"
    ring.mkdir(parents=True)
    for name in ("me.info", f"{ACCOUNT}.address", "keyhash", "x.address"):
        (ring / name).touch()
    facts, _ = read(tmp_path)
    assert facts.keyring.names == {"me"}
    assert facts.addresses == {ADDRESS}


def test_the_keyrings_folder(tmp_path: Path) -> None:
    """Exactly the key's name, not one that begins alike; what is no folder is no keyring."""
    (tmp_path / "docker-compose.yml").touch()
    ring = tmp_path / ".inference" / "keyring-file"
    ring.mkdir(parents=True)
    for name in ("quick-newton-2.info", "0a1b.address", "keyhash"):
        (ring / name).touch()
    keyring = read(tmp_path)[0].keyring
    assert keyring.names == {"quick-newton-2"}
    assert keyring.others == {"0a1b.address", "keyhash"}
    ring.rename(tmp_path / "away")
    ring.touch()
    with pytest.raises(UnexpectedAnswer, match="the keyring's folder"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["answer", "answer.new", "failed"])
def test_words_are_never_read_with_it(name: str, tmp_path: Path) -> None:
    """Of an answer its hash alone; of a failure no line that could be words."""
    (tmp_path / "docker-compose.yml").touch()
    ring, ours = tmp_path / ".inference" / "keyring-file", tmp_path / "ours"
    ring.mkdir(parents=True)
    ours.mkdir()
    (ring / "me.info").touch()
    (ours / name).write_text(f"- address: {ADDRESS}\n{WORDS}\nError: aborted\n" + "\0" * 99)
    facts, text = read(tmp_path)
    assert not any(word in text for word in WORDS.split() if word != "error")
    assert bool(facts.answer_hash) is (name != "failed")
    assert facts.failure == ("Error: aborted" if name == "failed" else "")
    assert facts.problem == (
        "it says something that is not known: Error: aborted" if name == "failed" else ""
    )


def test_what_is_no_answer(tmp_path: Path) -> None:
    """Is no wallet."""
    for text in ("", "@folder\n=0\n@files\n=0\n@maker\n=0\n@answer\n x\n=0\n@failure\n=0\n"):
        with pytest.raises(UnexpectedAnswer):
            read_wallet(text)
