"""Host keys: pinned, confirmed, unknown, changed."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.errors import DeployError, HostKeyChanged, HostKeyUnknown
from pocqueue.deploy.host_key import HostKeys, Verdict, fingerprint_of

ONE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFxtkahP9A6ocXDJwFUM8eXOBaWJtSNUrLxjxCya/I+G"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKTjwUc2ClEscDY6eKn+OWhUOr+myraIf+9eLGGV5eDR"


def test_fingerprints_are_those_of_openssh(tmp_path: Path) -> None:
    """As `ssh-keygen -l` prints them."""
    file = tmp_path / "key.pub"
    file.write_text(f"{ONE} a comment\n")
    command = shutil.which("ssh-keygen") or pytest.skip("no ssh-keygen")
    done = subprocess.run([command, "-lf", file], capture_output=True, text=True, check=True)
    assert fingerprint_of(ONE) == done.stdout.split()[1]
    with pytest.raises(ValueError, match="no public key"):
        fingerprint_of("nonsense")


def test_a_key_is_known_after_it_was_kept(tmp_path: Path) -> None:
    """In a private file that OpenSSH could read, for this server and port alone."""
    path = tmp_path / "known_hosts"
    keys = HostKeys(path, "203.0.113.7", 2222)
    assert keys.judge(ONE) is Verdict.UNKNOWN
    assert isinstance(keys.error(ONE), HostKeyUnknown)
    keys.keep(ONE)
    keys.keep(f"{ONE} comment")
    assert path.read_text() == f"[203.0.113.7]:2222 {ONE}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = HostKeys(path, "203.0.113.7", 2222)
    assert (again.judge(ONE), again.judge(OTHER)) == (Verdict.KNOWN, Verdict.CHANGED)
    assert again.types == ["ssh-ed25519"]
    assert HostKeys(path, "203.0.113.7", 22).judge(ONE) is Verdict.UNKNOWN
    error = again.error(OTHER)
    assert isinstance(error, HostKeyChanged)
    assert fingerprint_of(ONE) in str(error)
    assert fingerprint_of(OTHER) in str(error)
    assert str(path) in str(error)


def test_a_pinned_key_is_the_only_one(tmp_path: Path) -> None:
    """Whatever was confirmed before."""
    path = tmp_path / "known_hosts"
    HostKeys(path, "h", 22).keep(OTHER)
    keys = HostKeys(path, "h", 22, pinned=fingerprint_of(ONE))
    assert (keys.judge(ONE), keys.judge(OTHER)) == (Verdict.KNOWN, Verdict.CHANGED)
    assert "SSH_HOST_KEY" in str(keys.error(OTHER))


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """It is not taken for an empty one, and no link is written through."""
    with pytest.raises(DeployError, match="cannot be read"):
        HostKeys(tmp_path, "h", 22)
    link = tmp_path / "known_hosts"
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(DeployError, match="cannot be written"):
        HostKeys(link, "h", 22).keep(ONE)
    assert not (tmp_path / "victim").exists()
