"""Keys of ours in a login's authorized_keys: added, taken back, and never the last one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pocqueue.deploy.journal import STILL_THERE
from pocqueue.deploy.steps.admin_keys import AdminKeys, KeyFacts, blob_of
from pocqueue.deploy.words import Command

BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIFxtkahP9A6ocXDJwFUM8eXOBaWJtSNUrLxjxCya/I+G"
KEY = f"ssh-ed25519 {BLOB} admin at work"
THEIRS = f"ssh-ed25519 {BLOB[:-4]}AAAA theirs"


def script(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ours for a login."""
    return subprocess.run(
        Command(words, script="admin_keys").argv(),
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_key_that_is_commented_out_is_added(tmp_path: Path) -> None:
    """It lets nobody in."""
    assert blob_of(KEY) == blob_of(f'command="x" {KEY}') == BLOB
    assert blob_of(f" # {KEY}") is blob_of(f"#{KEY}") is None
    assert script(tmp_path, "add", KEY).returncode == 0


def test_what_still_stands_is_not_taken_back(tmp_path: Path) -> None:
    """The last key of all, and one whose line somebody changed; a comment is no key."""
    keys = tmp_path / ".ssh" / "authorized_keys"
    script(tmp_path, "add", KEY)
    keys.write_text(f"# {THEIRS}\n{KEY}\n")
    done = script(tmp_path, "remove", KEY)
    assert done.returncode == STILL_THERE
    assert "No key would stay" in done.stdout
    assert keys.read_text() == f"# {THEIRS}\n{KEY}\n"
    keys.write_text(f"{THEIRS}\nssh-ed25519 {BLOB} renamed\n")
    done = script(tmp_path, "remove", KEY)
    assert done.returncode == STILL_THERE
    assert "changed since" in done.stdout
    keys.write_text(f"{THEIRS}\n{KEY}\n# {KEY}\n")
    assert script(tmp_path, "remove", KEY).returncode == 0
    assert keys.read_text() == f"{THEIRS}\n# {KEY}\n"


def test_the_keys_are_named_before_they_go() -> None:
    """By type, end and comment."""
    [undo] = AdminKeys((KEY,)).plan(KeyFacts(1, (KEY,))).undo
    assert undo.what == "remove the keys that were added: ssh-ed25519 …xCya/I+G admin at work"
