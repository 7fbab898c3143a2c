"""The folder of a node's files on this machine, and that none of them gets into a repository of sources."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.errors import DeployError


def make_folders(conf: Conf) -> None:
    """Make the folders of the node's files and of its logs, for their owner alone, each with a `.gitignore`.

    Raises:
        DeployError: one cannot be made, or is a link or somebody else's.
    """
    for folder in (conf.folder, conf.logs):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise DeployError(
                    f"{folder} is a link or another user's: files with keys go into a folder of your own; mend it."
                )
            if folder == conf.folder:
                folder.chmod(0o700)
            ignore = folder / ".gitignore"
            if not os.path.lexists(ignore):
                ignore.write_text("*\n")
        except OSError as exc:
            raise DeployError(
                f"{folder} cannot be made or used ({exc.strerror}): mend it."
            ) from None


def tracked_secrets(conf: Conf) -> list[Path]:
    """Return which files with secrets git keeps: the conf file, and those of the node's folder."""
    git = shutil.which("git")
    if git is None:
        return []
    done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        [git, "-C", str(conf.path.parent), "ls-files", "-z", "--", conf.path.name, conf.key_name],
        capture_output=True,
        timeout=30,
        check=False,
    )
    # Not a repository: git says so by its exit code.
    names = done.stdout.decode("utf-8", "replace").split("\0") if done.returncode == 0 else []
    return [conf.path.parent / name for name in names if name]
