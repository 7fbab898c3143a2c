"""The node's three files, on the server and in the node's folder here."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pocqueue.deploy.engine import Host, LocalFile, Plan, Upload
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, pairs, read_parts
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.node_files import NodeFile, node_files
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.words import Command, Secret

#: Whatever an older file has there is a secret, too.
_PASSWORD_LINE = re.compile(r"^((?:export )?\w*PASSWORD\w*=).*", re.MULTILINE)
#: Files with the password. A hash is in names, logs and words, and a password is guessed by it: theirs is that of the lines that
#: cannot have a secret, as node_file.sh has it, too.
_PRIVATE = frozenset({"config.env", ".env"})
_SECRET_LINE = re.compile(r"^.*(?:pass|token|secret|key).*\n?", re.MULTILINE | re.IGNORECASE)
#: Closes the ports that upstream's compose files open.
OUR_FILE = "docker-compose.pocqueue.yml"
#: All of them, which one look reads.
_FILES = ("config.env", "node-config.json", ".env", OUR_FILE)
_VARIABLE = re.compile(r"\s*(?:export\s+)?([A-Z][A-Z0-9_]{0,63})=")


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it is on the server and here, and as it is wanted.

    Attributes:
        folder: on the server.
        file: that is wanted.
        hash_hex: SHA-256 of the one that is there, or of what cannot be a secret of it; ``-``: there is none.
        is_wanted: it is the wanted one.
        mode: of it.
        kind: of what is there; empty: nothing.
        before: its text, of which values that are not ours are left out: any of them may be a secret.
        local: path of the copy here.
        is_local: it is there, as it is wanted.
        wholes: path of our file on the server with the hashes of whole files with a secret that were ours; none: this has none.
    """

    folder: str
    file: NodeFile
    hash_hex: str
    is_wanted: bool
    mode: int
    kind: str
    before: str
    local: Path
    is_local: bool
    wholes: tuple[str, ...]

    @property
    def wanted_hash(self) -> str:
        """Return the hash of the wanted one."""
        return _hash_of(self.file)


@dataclass(frozen=True, slots=True)
class HasNodeFile:
    """One of the files is there, as the conf gives it.

    Args:
        file: its name.
    """

    file: str
    phase: int = 3

    @property
    def name(self) -> str:
        """Return its name."""
        return self.file

    async def look(self, host: Host) -> FileState:
        """Read the one on the server and the copy here."""
        await need_mounted(host)
        folder = compose_folder(host.conf)
        command = Command(("look", folder, *_FILES), script="node_file", sudo=True)
        said = await looked(host, self.name, command, needs=folder)
        parts = read_parts(said, f"stat {self.file}", f"hash {self.file}")
        stat = pairs("stat", parts[f"stat {self.file}"].wanted().text)
        file = await self.wanted(host)
        local = host.conf.folder / self.file
        try:
            is_local = (
                local.read_bytes() == file.text.encode() and local.stat().st_mode & 0o777 == 0o600
            )
        except OSError:
            is_local = False
        text = parts.get(f"text {self.file}")
        before = text.text if text else ""
        hash_hex = _hash(parts[f"hash {self.file}"])
        is_same = self.file not in _PRIVATE or before.rstrip("\n") == file.text.rstrip("\n")
        return FileState(
            folder=folder,
            file=file,
            hash_hex=hash_hex,
            is_wanted=hash_hex == _hash_of(file) and is_same,
            mode=int(stat.get("mode", "0"), 8),
            kind=stat.get("kind", ""),
            before=_without_secrets(before, file),
            local=local,
            is_local=is_local,
            wholes=(f"{host.state_dir}/node-files",) if self.file in _PRIVATE else (),
        )

    async def wanted(self, host: Host) -> NodeFile:
        """Return the file as it should be.

        Raises:
            StepFailed: it cannot be made.
        """
        try:
            [file] = [file for file in node_files(host.conf) if file.name == self.file]
        except DeployError as exc:
            raise StepFailed(self.name, str(exc)) from None
        return file

    def told(self, facts: FileState) -> str:
        """Say whether it is there."""
        found = (
            "none"
            if facts.hash_hex == "-"
            else f"mode {facts.mode:04o}, SHA-256 {facts.hash_hex[:12]}"
        )
        return f"{facts.folder}/{self.file}: {found}{'' if facts.is_local else ', no copy here'}"

    def is_done(self, facts: FileState) -> bool:
        """Say whether both are as they should be."""
        return facts.is_wanted and facts.mode == facts.file.mode and facts.is_local

    def plan(self, facts: FileState) -> Plan:
        """Keep the one that is there, and put ours in its place.

        Raises:
            StepFailed: what is there is no file.
        """
        if facts.kind not in ("", "regular file", "regular empty file"):
            raise StepFailed(
                self.name,
                f"{facts.folder}/{self.file} is a {facts.kind}: look at it and move it away.",
            )
        local = LocalFile(str(facts.local), facts.file.text, 0o600)
        if facts.is_wanted and facts.mode == facts.file.mode:
            return Plan(f"copy to {facts.local}", (local,))
        place = f"{facts.folder}/{self.file}"
        words = (facts.folder, self.file)
        kept = "" if facts.hash_hex == "-" else f", backup {place}.pocqueue-{facts.hash_hex[:12]}…"
        undo = Undo(
            self.name,
            f"put {place} back as it was",
            "node_file",
            ("restore", *words, facts.wanted_hash, facts.hash_hex, *facts.wholes),
        )
        # A word would be in the server's list of processes.
        whole = Secret("SHA-256", f"{hashlib.sha256(facts.file.text.encode()).hexdigest()}\n")
        return Plan(
            f"{place}{kept}",
            (
                local,
                Command(
                    ("keep", *words, *facts.wholes),
                    stdin=(whole,) if facts.wholes else (),
                    script="node_file",
                    sudo=True,
                ),
                Upload(str(facts.local), place, facts.file.parts, facts.file.mode),
            ),
            () if facts.is_wanted else (undo,),
            diff=_diff(facts.before, _PASSWORD_LINE.sub(r"\1…", facts.file.shown), self.file),
        )


def _hash_of(file: NodeFile) -> str:
    text = _SECRET_LINE.sub("", file.text) if file.name in _PRIVATE else file.text
    return hashlib.sha256(text.encode()).hexdigest()


def _without_secrets(text: str, ours: NodeFile) -> str:
    """Return a file's text with those lines alone that ours has, too; of the others the name of a variable at most."""
    known = dict(zip(ours.text.splitlines(), ours.shown.splitlines(), strict=True))
    names = {found[1] for line in known if (found := _VARIABLE.match(line))}

    def line_shown(line: str) -> str:
        if line in known:
            return known[line]
        found = _VARIABLE.match(line)
        # A line of a secret in base32 looks like a variable, too.
        return f"{found[0]}…" if found and (found[1] in names or "_" in found[1]) else "…"

    return _PASSWORD_LINE.sub(r"\1…", "\n".join(map(line_shown, text.splitlines())))


def _hash(part: Part) -> str:
    found = part.wanted().text.strip()
    if not re.fullmatch(r"-|[0-9a-f]{64}", found):
        raise UnexpectedAnswer("sha256sum", found, "a hash")
    return found


def _diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), name, name, lineterm="", n=1
    )
    return "\n".join(lines)
