"""What the steps on the disk need first: that it is there, and what they look for on it."""

from __future__ import annotations

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Host, NotYet
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.words import Command


async def need_mounted(host: Host) -> None:
    """Go on if the disk is mounted: without it everything would land on the system's.

    Raises:
        NotYet: it is not.
    """
    mount = host.conf.volume_mount
    said = await host.look(Command(("mountpoint", "-q", "--", mount)))
    if said.exit_code != 0:
        raise NotYet(f"until {mount} is mounted")


def compose_folder(conf: Conf) -> str:
    """Return the folder of the compose files."""
    return f"{conf.gonka_path}/deploy/join"


async def looked(
    host: Host, name: str, command: Command, *, needs: str = "", anew: bool = False
) -> str:
    """Return what a command of facts prints.

    Args:
        host: the server.
        name: of the step.
        command: prints facts.
        needs: path that it ends with code 66 without; empty: none.
        anew: as of `Host.look`.

    Raises:
        NotYet: that path is not there yet.
        StepFailed: it ended otherwise.
    """
    said = await host.look(command, anew=anew)
    if needs and said.exit_code == 66:
        raise NotYet(f"until {needs} is there")
    if said.exit_code != 0 or said.is_cut:
        raise StepFailed(
            name,
            f"it cannot be looked at: {command.shown()}.",
            exit_code_there=said.exit_code,
            tail=said.tail,
        )
    return said.stdout
