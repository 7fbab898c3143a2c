"""What a run says to people: the parameters before it begins, the plan of a dry run, how steps stand, why it stopped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import TITLES
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.grant import grant_lines
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.planning import Planned
from pocqueue.deploy.preflight import Verdict
from pocqueue.deploy.steps.registration import participant_url
from pocqueue.deploy.steps.services import BEFORE, DOWN
from pocqueue.deploy.verify import PHASE
from pocqueue.words import counted

#: sudo's words where it runs a command not at all, whose script stands between them.
_SUDO_REFUSES = re.compile(
    r"is not allowed to execute|' as \S+ on \S+\.$|^sudo: a (?:password|terminal) is required"
)


def parameters(conf: Conf) -> list[str]:
    """Return the lines of what a conf says, for the question whether to begin; no secret is in them."""
    password = conf.keyring_password
    masked = f"******** ({len(password.reveal())} chars)" if password else "asked for when needed"
    sections: dict[str, dict[str, object]] = {
        "SERVER": {
            "SSH connection": conf.server,
            "SSH key": conf.ssh_key or "those of this machine",
            "Host key": conf.ssh_host_key or "confirmed once",
        },
        "NODE": {
            "Key name": conf.key_name,
            "Account public key": conf.account_pubkey,
            "Keyring password": masked,
            "Profile": conf.node_config_profile,
            "Public URL": conf.public_url,
        },
        "NETWORK": {
            "Seed API URL": conf.seed_api_url,
            "Persistent peers": counted(len(conf.persistent_peers), "peer"),
        },
        "MODEL": {
            "Model": conf.model_name
            + (f" at {conf.model_revision}" if conf.model_revision else ""),
            "HF home": conf.hf_home,
        },
        "STORAGE": {
            "Volume device": conf.volume_device,
            "Mount point": conf.volume_mount,
            "Format": f"{conf.volume_format}, from {conf.volume_min_gb} GB on",
            "Gonka path": conf.gonka_path,
        },
        "SOFTWARE": {"Install packages": conf.install, "Monitoring": conf.monitoring},
        "FILES": {"Node": conf.folder, "Logs": conf.logs},
    }
    lines = [f"Configuration loaded from {conf.path}"]
    for title, rows in sections.items():
        lines += [title, *(f"  {name + ':':<20} {value}" for name, value in rows.items())]
    return lines


def plan_lines(planned: Sequence[Planned]) -> Iterator[str]:
    """Return the lines of a dry run: of each step how it stands, and all that the run then does."""
    for phase, found in groupby(planned, lambda item: item.step.phase):
        yield f"PHASE {phase}  {TITLES[phase]}"
        for item in found:
            final = "   CANNOT BE UNDONE" if item.plan and item.plan.is_final else ""
            yield f"  {item.state:<8} {item.step.name:<22} {item.told}{final}"
            if item.plan is not None:
                yield from (f"             {line}" for line in item.plan.diff.splitlines())
                yield from (f"             {action.shown()}" for action in item.plan.actions)
    yield f"PHASE {PHASE}  {TITLES[PHASE]}"
    yield "  look     the node as it runs, and verification.txt here; every time"
    num = {
        state: sum(item.state == state for item in planned)
        for state in ("change", "skip", "unknown", "stop")
    }
    stops = f", {num['stop']} cannot be done" if num["stop"] else ""
    yield (
        f"{counted(num['change'], 'step')} to change, {num['skip']} done, {num['unknown']} unknown{stops}. Nothing was changed."
    )


def success(out: Log, conf: Conf, address: str, backup: str) -> None:
    """Write the end of a run whose node is verified: the report of the first workflow, word for word, which nothing else may write.

    Args:
        out: log of the run.
        conf: of the node.
        address: of its warm key.
        backup: path of the keys' archive on the server; empty: there is none.
    """
    seed = conf.seed_api_url.rstrip("/")
    out.ok("✅ Deployment completed successfully")
    out.info(f"📝 Все важные файлы сохранены в {near(conf.folder)}/")  # noqa: RUF001 - words of the first workflow
    for path in kept_files(conf):
        out.info(f"    {near(path)}")
    if backup:
        out.info(f"    {conf.server}:{backup}")
    out.info(f"📊 Полный лог в {near(out.path) if out.path else conf.logs}")
    out.info("🔗 Полезные ссылки для проверки")
    out.info(f"    Participant API: {participant_url(conf.seed_api_url, conf.account_pubkey)}")
    out.info(f"    Dashboard:       {conf.public_url.rstrip('/')}/")
    out.info(f"    Network:         {seed}/v1/epochs/current/participants")
    out.warn("⚠️  ВАЖНО: Выполните команду grant локально!")
    for line in grant_lines(conf, address):
        out.info(line)


def last_verification(conf: Conf) -> str:
    """Return what the last verification found, and when."""
    path = conf.folder / "verification.txt"
    try:
        found = [line.partition(" ")[0] for line in path.read_text("utf-8").splitlines()]
        at = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except OSError:
        return "verification: not yet: `pocqueue deploy verify` looks"
    shown = ", ".join(f"{found.count(verdict.name)} {verdict.name}" for verdict in Verdict)
    return f"verification of {at:%Y-%m-%d %H:%M:%S}: {shown}"


def staying(conf: Conf, journal: Journal) -> Iterator[str]:
    """Return what no rollback takes back, for people."""
    if noted := journal.get("volume"):
        yield f"the filesystem {noted['uuid']} on {noted['device']}, and all in it: the repository, the model, the chain's data"
    if (conf.folder / "warm_address.txt").exists():
        yield f"the wallet {conf.key_name} on the server, and {near(conf.folder / 'warm_key.txt')}"
    if (conf.folder / "registration.txt").exists():
        yield "the registration with the network, and a grant: the chain forgets nothing"
    # Those that came later are ours, if the journal has how they are ended.
    if not any(undo.script == DOWN for undo in journal.undos) and (names := journal.get(BEFORE)):
        yield f"the node's containers: {', '.join(names)} were there before the first run"
    if journal.steps.get("packages"):
        yield "packages of the distribution that were installed"


def near(path: Path) -> Path:
    """Return a path as it is typed here: from this folder, where it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


#: The node's files, in the order of the phases that make them.
_FILES = (
    *("volume.txt", "config.env", ".env", "node-config.json", "warm_key.txt", "warm_address.txt"),
    *("registration.txt", "verification.txt"),
)


def kept_files(conf: Conf) -> list[Path]:
    """Return the node's files that are there, and the backups."""
    found = [conf.folder / name for name in _FILES if (conf.folder / name).exists()]
    backups = conf.folder / "backups"
    return [*found, *(sorted(backups.iterdir()) if backups.is_dir() else ())]


def failure(out: Log, conf: Conf, exc: DeployError, command: str = "run") -> None:
    """Write down why a run stopped: the error, the last lines of the server, and the command to go on with.

    Args:
        out: log of the run.
        conf: of the node.
        exc: why it stopped.
        command: of `pocqueue deploy`, which failed.
    """
    out.error(str(exc))
    if isinstance(exc, StepFailed):
        for line in exc.tail:
            out.error(f"  | {line}")
        if any(map(_SUDO_REFUSES.search, exc.tail)):
            out.error(
                f"sudo lets {conf.ssh_user} run some commands and not this one. A run needs `sh` as root; type on the server, as "
                f"root: echo '{conf.ssh_user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pocqueue"
            )
    again = f"pocqueue deploy {command} {shlex.quote(str(conf.path))}"
    out.error(f"STOP. What is done stays done; when this is mended, go on with: {again}")
    if out.path is not None:
        out.error(f"Log: {out.path}")
