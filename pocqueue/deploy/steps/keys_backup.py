"""An archive of the keys that a node cannot be without, before something is done beside them; it stays on the server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.facts.parts import UnexpectedAnswer, pairs, read_parts
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.words import Command


@dataclass(frozen=True, slots=True)
class BackupState:
    """The keys that there are, and their archive.

    Attributes:
        folder: of the compose files.
        dir: of the archives, on the system's disk.
        name: of the node.
        print: fingerprint of the keys; empty: there are none.
        path: of the archive of exactly these; empty: there is none.
        mode: of it.
    """

    folder: str
    dir: str
    name: str
    print: str
    path: str
    mode: int

    @property
    def archive(self) -> str:
        """Return the path that it has, or will have."""
        return f"{self.dir}/{self.name}-{self.print}.tar"


@dataclass(frozen=True, slots=True)
class KeysBackup:
    """The keys are in an archive: .tmkms/secrets, the keyring, node_key.json.

    Args:
        phase: that it is made before.
    """

    phase: int

    @property
    def name(self) -> str:
        """Return what it is called."""
        return f"backup before phase {self.phase}"

    async def look(self, host: Host) -> BackupState:
        """Read the keys' fingerprint, and see whether there is an archive of it."""
        await need_mounted(host)
        folder, dir_ = compose_folder(host.conf), f"{host.state_dir}/backups"
        name = host.conf.key_name
        command = Command(("look", folder, dir_, name), script="backup_keys", sudo=True)
        said = await looked(host, self.name, command, needs=f"{folder}/docker-compose.yml")
        parts = read_parts(said, "keys", "archive")
        print_ = parts["keys"].wanted().text.strip()
        if not re.fullmatch(r"([0-9a-f]{16})?", print_):
            raise UnexpectedAnswer("sha256sum", print_, "a hash")
        found = pairs("stat", parts["archive"].wanted().text)
        return BackupState(
            folder, dir_, name, print_, found.get("path", ""), int(found.get("mode", "0"), 8)
        )

    def told(self, facts: BackupState) -> str:
        """Say where it is."""
        return facts.path or ("no keys yet" if not facts.print else "none of the keys as they are")

    def is_done(self, facts: BackupState) -> bool:
        """Say whether there is one of the keys as they are, or there are none."""
        return not facts.print or (bool(facts.path) and facts.mode == 0o600)

    def plan(self, facts: BackupState) -> Plan:
        """Make it."""
        words = ("make", facts.folder, facts.dir, facts.name)
        command = Command(words, script="backup_keys", sudo=True, timeout_s=120)
        return Plan(
            f"{facts.archive}, for root alone", (command,), notes={"keys_backup": facts.archive}
        )
