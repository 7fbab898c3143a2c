"""Where a node of this machine keeps its chain and its key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import NodeDataError

if TYPE_CHECKING:
    from pocqueue.settings import PouwSettings

#: Keys in that folder: of the node, and of who orders tasks beside it (two nodes with one key cannot be linked).
NODE_KEY, CLIENT_KEY = "key.pem", "client-key.pem"


def data_dir(settings: PouwSettings) -> Path:
    """Return the folder of a node, made if it is not there.

    Raises:
        NodeDataError: it cannot be made.
    """
    from pocqueue.settings import Settings
    from pocqueue.settings.base import full_path

    folder = Settings.load().state_dir / "pouw" if settings.dir is None else full_path(settings.dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise NodeDataError(
            f"The folder {folder} cannot be made ({exc.strerror}): set POCQUEUE_POUW_DIR to one that can."
        ) from None
    return folder


def account_key(settings: PouwSettings, folder: Path, name: str) -> SigningKey:
    """Return the key of an account: POCQUEUE_POUW_KEY, or that of this name in the folder, made if it is not there.

    Raises:
        KeyFileError: it cannot be read or made, or others can read it.
    """
    from pocqueue.settings.base import full_path

    path = folder / name if settings.key is None else full_path(settings.key)
    if settings.key is None and not os.path.lexists(path):
        key = SigningKey.generate()
        key.save_pem(path)
        return key
    return SigningKey.load(path)
