"""Rollback behind each phase: what runs have added is gone, and what stays is what is said to stay."""

from __future__ import annotations

from pathlib import Path

from pocqueue.deploy.report import staying
from tests.deploy.network import has_network
from tests.deploy.steps.on_disk import OnDisk, on_disk
from tests.deploy.steps.test_cut_off import KEY, steps_of


def seen(here: OnDisk) -> dict[str, bytes]:
    """Return the files that a rollback is about, by their names."""
    join = here.join
    ours = [
        *(join / name for name in ("config.env", ".env", "node-config.json")),
        join / "docker-compose.pocqueue.yml",
        here.server.root / ".ssh" / "authorized_keys",
        *(here.disk / "prometheus").rglob("*"),
    ]
    return {str(path): path.read_bytes() for path in ours if path.is_file()}


async def take_back(here: OnDisk) -> None:
    """Take all of it back, the last first."""
    journal = here.later().host.journal
    for undo in journal.undos[::-1]:
        said = await here.host.connection.run(undo.command())
        assert said.exit_code == 0, (undo, said)
        journal.drop_undo(undo)


async def test_behind_each_phase(tmp_path: Path) -> None:
    """One server goes up to a phase and back again, once for each of them."""
    keys = tmp_path / "admins.pub"
    keys.write_text(f"{KEY}\n")
    async with on_disk(tmp_path, ADMIN_KEYS=str(keys), MONITORING="on") as here:
        has_network(here.fakes, here.host.conf)
        ssh = here.server.root / ".ssh"
        ssh.mkdir(mode=0o700)
        (ssh / "authorized_keys").write_text("ssh-ed25519 AAAA theirs\n")
        before = seen(here)
        for phase in range(1, 7):
            await here.later().run(*(step for step in steps_of(here) if step.phase <= phase))
            assert here.later().host.journal.undos
            added = seen(here)
            assert added != before
            await take_back(here)
            left = seen(here)
            # The repository's own file is there again as soon as the repository is.
            upstream = str(here.join / "node-config.json")
            assert left.keys() - before.keys() <= {upstream}
            assert left.get(upstream, b"[]\n") == b"[]\n"
            assert {name: left[name] for name in before} == before
            assert not list((here.fakes.folder / "state").glob("docker/*"))
            assert here.fakes.state("volumes-removed") == ""
        stays = " ".join(staying(here.host.conf, here.later().host.journal))
        assert "the wallet quick-newton" in stays
        assert "the registration" in stays
        assert (here.join / ".inference" / "keyring-file").is_dir()
        assert (here.join / ".tmkms" / "secrets").is_dir()
