"""The grant with which the cold key lets the node's warm key work: a command for the machine that has the cold key.

That key never leaves it, and nothing here asks for it or for its password: `inferenced` does, in the terminal.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.errors import BadUsage, DeployError
from pocqueue.deploy.facts.keys import checked_address

#: Most that the transaction may cost, as the network's guide has it.
GAS = 2_000_000


def warm_address(conf: Conf) -> str:
    """Return the address of the node's warm key, as a run has written it down.

    Raises:
        DeployError: no run has made one yet, or the file has something else.
    """
    path = conf.folder / "warm_address.txt"
    try:
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        raise DeployError(
            f"{path} is not there: `pocqueue deploy run {shlex.quote(str(conf.path))}` makes the key in phase 4."
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise DeployError(f"{path} cannot be read ({exc}): mend it.") from None
    return checked_address(text)


def grant_words(conf: Conf, address: str) -> tuple[str, ...]:
    """Return the program's words: those of the first workflow, with both names filled in."""
    node = f"{conf.seed_api_url.rstrip('/')}/chain-rpc/"
    return (
        *("tx", "inference", "grant-ml-ops-permissions", conf.cold_key_name, address),
        *("--from", conf.cold_key_name),
        *("--keyring-backend", "file"),
        *("--gas", str(GAS)),
        *("--node", node),
    )


def grant_lines(conf: Conf, address: str) -> list[str]:
    """Return the command as people copy it: an argument, or an option with its value, a line."""
    words = [shlex.quote(word) for word in grant_words(conf, address)]
    options = [" ".join(words[at : at + 2]) for at in range(5, len(words), 2)]
    rows = [" ".join(("./inferenced", *words[:3])), *words[3:5], *options]
    return " \\\n    ".join(rows).split("\n")


def run_grant(words: Sequence[str]) -> int:
    """Run it here; it asks in the terminal for what it needs, and whether to sign.

    Returns:
        Its exit code.

    Raises:
        BadUsage: the program is not on this machine.
    """
    here = Path("inferenced")
    program = str(here.absolute()) if here.is_file() else shutil.which("inferenced")
    if program is None:
        raise BadUsage(
            "inferenced is neither in this folder nor on the PATH: take the command to the machine that has it and the cold key."
        )
    return subprocess.run([program, *words], check=False).returncode  # noqa: S603 - checked words
