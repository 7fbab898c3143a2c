"""The agent's own process, which `pocqueue agent` becomes: `python -m pocqueue.hosts.agent FD`.

What reads the command line and the settings takes more memory than the agent, and is needed once. So the command leaves
the options in a file in memory (a token may be among them, which nobody is to see among the arguments) and replaces
itself.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from pocqueue.hosts.agent.options import Options

_EXIT_BAD_INPUT = 2


def become(options: Options, log_level: str) -> NoReturn:
    """Replace this process by an agent."""
    told = json.dumps({"options": asdict(options), "log_level": log_level}, default=str)
    fd = os.memfd_create("options", 0)
    os.write(fd, told.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    # The folder that somebody happens to be in is no place for modules, unless this process has them from there.
    safe = [] if str(Path.cwd()) in sys.path else ["-P"]
    os.execv(sys.executable, [sys.executable, *safe, "-m", "pocqueue.hosts.agent", str(fd)])  # noqa: S606


def _told(fd: int) -> tuple[Options, str]:
    with open(fd, "rb") as file:
        told: dict[str, Any] = json.load(file)
    fields = told["options"]
    fields |= {"state_dir": Path(fields["state_dir"]), "programs": tuple(fields["programs"])}
    return Options(**fields), told["log_level"]


def main(fd: int) -> int:
    """Run the agent; return the exit code."""
    # What becomes an agent has no use for it.
    import asyncio

    from pocqueue.errors import PocqueueError
    from pocqueue.hosts.agent.agent import run_agent
    from pocqueue.logs import log_to_stderr

    options, log_level = _told(fd)
    log_to_stderr(log_level)
    try:
        asyncio.run(run_agent(options))
    except PocqueueError as exc:
        sys.stderr.write(f"pocqueue: {exc}\n")
        return _EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
