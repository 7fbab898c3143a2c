"""Big nodes that were caught cheating: on disk, by URL, until the operator says otherwise.

A JSON file in the state folder, written as a whole under a lock and read again for every session, so that
`pocqueue node trust clear` works beside a running node.
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import override

from pocqueue.errors import DelegationError, OutboxError
from pocqueue.files import SharedFile

logger = logging.getLogger(__name__)

#: Name of the file in the state folder.
TRUST_NAME = "node-cheats.json"


class Cheat(BaseModel):
    """A big node that was caught."""

    url: str
    caught: str  #: when, ISO 8601
    session_id: str
    reason: str


_CHEATS = TypeAdapter(list[Cheat])


@dataclass(frozen=True)
class TrustFile(SharedFile):
    """The big nodes that are not used any more.

    Every method raises OutboxError if the file cannot be read or written.
    """

    def read(self) -> list[Cheat]:
        """Return them, oldest first; none if there is no file."""
        data = self.content()
        if data is None:
            return []
        try:
            return _CHEATS.validate_json(data)
        except ValidationError as exc:
            raise OutboxError(
                f"{self.path} is no list of big nodes that cheated ({exc.errors()[0]['msg']}): mend it, or "
                "move it away, which trusts all of them again."
            ) from None

    def check(self, url: str) -> None:
        """Refuse a big node that was caught.

        Raises:
            DelegationError: it was.
        """
        for cheat in self.read():
            if cheat.url == _plain(url):
                raise DelegationError(
                    f"The big node at {cheat.url} is not used any more: {cheat.caught} it cheated "
                    f"({cheat.reason}). `pocqueue node trust clear {cheat.url}` trusts it again",
                    is_final=True,
                )

    def add(self, url: str, session_id: str, reason: str) -> None:
        """Note that a big node was caught."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        cheat = Cheat(url=_plain(url), caught=now, session_id=session_id, reason=reason)
        with self.locked():
            self._write([*(known for known in self.read() if known.url != cheat.url), cheat])
        logger.error(
            "DELEGATION %s is not used any more, until `pocqueue node trust clear %s`.",
            *(cheat.url, cheat.url),
        )

    def clear(self, url: str | None) -> list[str]:
        """Trust a big node again, or all of them (None); return the URLs of those that were not."""
        with self.locked():
            known = self.read()
            cleared = [cheat for cheat in known if url is None or cheat.url == _plain(url)]
            if cleared:
                self._write([cheat for cheat in known if cheat not in cleared])
        return [cheat.url for cheat in cleared]

    def _write(self, cheats: list[Cheat]) -> None:
        self.replace(_CHEATS.dump_json(cheats, indent=2) + b"\n")

    @override
    def unusable(self, done: str, exc: OSError) -> OutboxError:
        return OutboxError(
            f"{self.path}, the list of big nodes that cheated, cannot be {done} ({exc.strerror}): mend its "
            "folder, or set POCQUEUE_STATE_DIR to another."
        )


def _plain(url: str) -> str:
    """Return a URL in one spelling: a cheat is not another one by a slash or a capital."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in {None, default} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
