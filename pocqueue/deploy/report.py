"""What a run says to people: the parameters before it begins, the plan of a dry run, how steps stand, why it stopped."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import PHASES, Planned
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.log import Log
from pocqueue.words import counted


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
        "FILES": {"Node": conf.folder, "Logs": conf.logs},
    }
    lines = [f"Configuration loaded from {conf.path}"]
    for title, rows in sections.items():
        lines += [title, *(f"  {name + ':':<20} {value}" for name, value in rows.items())]
    return lines


def plan_lines(planned: Sequence[Planned]) -> Iterator[str]:
    """Return the lines of a dry run: of each step how it stands, and all that the run then does."""
    for phase, found in groupby(planned, lambda item: item.step.phase):
        yield f"PHASE {phase}  {PHASES[phase]}"
        for item in found:
            final = "   CANNOT BE UNDONE" if item.plan and item.plan.is_final else ""
            yield f"  {item.state:<8} {item.step.name:<22} {item.told}{final}"
            if item.plan is not None:
                yield from (f"             {line}" for line in item.plan.diff.splitlines())
                yield from (f"             {action.shown()}" for action in item.plan.actions)
    num = {
        state: sum(item.state == state for item in planned)
        for state in ("change", "skip", "unknown", "stop")
    }
    stops = f", {num['stop']} cannot be done" if num["stop"] else ""
    yield (
        f"{counted(num['change'], 'step')} to change, {num['skip']} done, {num['unknown']} unknown{stops}. Nothing was changed."
    )


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
    again = f"pocqueue deploy {command} {shlex.quote(str(conf.path))}"
    out.error(f"STOP. What is done stays done; when this is mended, go on with: {again}")
    if out.path is not None:
        out.error(f"Log: {out.path}")
