"""The chain's node on a server: its two settings files, how far it is, and since when it runs."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from pocqueue.deploy.facts.chain import ChainStatus, read_status
from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, pairs, read_parts
from pocqueue.deploy.words import Command

#: Its settings files, below the folder of the compose files.
SETTINGS = ".inference/config"
FILES = ("config.toml", "app.toml")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is so.

    Attributes:
        texts: of the settings files, by name; those that are there.
        kinds: of what has such a name, and is no file.
        status: what it says of itself; None: it does not answer.
        started_s: when its container was started, seconds since 1970; None: there is none.
        edited_s: when its settings were last edited by us; None: never.
        waited_s: when it was last waited for, to the end; None: never.
        has_store: there is a store for its blocks, with any in it or none.
    """

    texts: dict[str, str]
    kinds: dict[str, str]
    status: ChainStatus | None
    started_s: float | None
    edited_s: float | None
    waited_s: float | None
    has_store: bool = False

    @property
    def height(self) -> int:
        """Return the block that it has; 0: none, or it does not answer."""
        return self.status.height if self.status else 0

    @property
    def has_blocks(self) -> bool | None:
        """Return whether it has a block; None: it does not answer, and may have some."""
        if self.status is None:
            return None if self.has_store else False
        return self.height > 0

    @property
    def is_synced(self) -> bool:
        """Return whether it has caught up with the network."""
        return self.status is not None and self.height > 0 and not self.status.is_catching_up

    @property
    def has_settings(self) -> bool:
        """Return whether it runs with the settings as they were last edited."""
        if self.edited_s is None:
            return True
        return self.started_s is not None and self.started_s >= self.edited_s

    @property
    def was_waited_for(self) -> bool:
        """Return whether it was waited for since its container was started."""
        if self.waited_s is None or self.started_s is None:
            return False
        return self.waited_s >= self.started_s


def node_facts(folder: str, edited: str, waited: str) -> Command:
    """Return the command that reads them; exit code 66: there are no compose files yet.

    Args:
        folder: of the compose files.
        edited: our file whose time is that of the last edit.
        waited: the file with the exit code of the job that waited.
    """
    return Command((folder, edited, waited), script="chain_facts", sudo=True, timeout_s=60)


def read_node(text: str) -> NodeFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "status", "store", "started", "edited", "waited")
    kinds = {name: pairs("stat", parts[f"{name}.kind"].text).get("kind", "") for name in FILES}
    texts = {name: _decoded(parts[name]) for name in FILES if name in parts}
    status = parts["status"]
    return NodeFacts(
        texts,
        {name: kind for name, kind in kinds.items() if kind and name not in texts},
        read_status(status.text) if status.exit_code == 0 else None,
        _seconds(parts["started"]),
        _seconds(parts["edited"]),
        _seconds(parts["waited"]),
        bool(parts["store"].wanted().text),
    )


def _decoded(part: Part) -> str:
    try:
        return base64.b64decode(part.text.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise UnexpectedAnswer(part.name, part.text, "a text in UTF-8") from None


def _seconds(part: Part) -> float | None:
    if part.exit_code != 0 or not part.text.strip():
        return None
    try:
        return float(part.text)
    except ValueError:
        raise UnexpectedAnswer(part.name, part.text, "seconds since 1970") from None
