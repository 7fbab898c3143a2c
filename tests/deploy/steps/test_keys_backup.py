"""The archive of a node's keys: of exactly what is there, for root alone, on the server."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest

from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.steps.keys_backup import KeysBackup
from pocqueue.deploy.steps.services import ServicesRun
from pocqueue.deploy.steps.wallet import WarmWallet
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk

STEP = KeysBackup(5)


def archives(here: OnDisk) -> list[Path]:
    """Return what is in the folder of archives."""
    folder = here.server.root / "state" / "backups"
    return sorted(folder.iterdir()) if folder.exists() else []


async def test_keys_are_kept(tmp_path: Path) -> None:
    """Once, until one more is there; nothing of it comes here, but where it is."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        lines = await here.run(KeysBackup(4))
        assert lines[-1] == "[SKIP] backup before phase 4: no keys yet"
        await here.run(ServicesRun())
        await here.run(STEP)
        [first] = archives(here)
        assert stat.S_IMODE(first.stat().st_mode) == 0o600
        assert here.host.journal.get("keys_backup") == str(first)
        with tarfile.open(first) as archive:
            files = {member.name for member in archive if member.isfile()}
        assert files == {".tmkms/secrets/kms-identity.key", ".inference/config/node_key.json"}
        assert kinds(await here.later().run(STEP)) == {"[INFO]", "[CHECK]", "[SKIP]"}
        await here.run(WarmWallet())
        await here.later().run(STEP)
        [second] = [path for path in archives(here) if path != first]
        with tarfile.open(second) as archive:
            assert ".inference/keyring-file/quick-newton.info" in archive.getnames()
        assert not list(here.host.conf.folder.rglob("*.tar"))


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """It may lead to files that are nobody's here."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(ServicesRun())
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "secret").write_text("x")
        (here.join / ".inference" / "keyring-file").symlink_to(tmp_path / "elsewhere")
        await here.run(STEP)
        [path] = archives(here)
        with tarfile.open(path) as archive:
            assert not [name for name in archive.getnames() if "keyring-file" in name]


async def test_a_full_disk_leaves_no_half_archive(tmp_path: Path) -> None:
    """None has the name of one; a later run makes it."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(ServicesRun())
        full = tmp_path / "full"
        full.mkdir()
        (full / "sync").write_text("#!/bin/sh\nexit 1\n")
        (full / "sync").chmod(0o755)
        here.server.env["PATH"] = f"{full}:{here.fakes.env['PATH']}"
        with pytest.raises(StepFailed):
            await here.run(STEP)
        assert not [path for path in archives(here) if path.suffix == ".tar"]
        here.server.env.pop("PATH")
        await here.later().run(STEP)
        assert [path.suffix for path in archives(here)] == [".tar"]


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_breaks(drop: str, tmp_path: Path) -> None:
    """There is one archive in the end."""
    async with on_disk(tmp_path) as here:
        here.has_project()
        await here.run(ServicesRun())
        fault = here.server.fault(Fault(r"backup_keys make", drop=drop))  # type: ignore[arg-type]
        await here.run_on(STEP)
        assert fault.times == 0
        assert len(archives(here)) == 1
