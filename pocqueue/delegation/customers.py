"""The customers of a delegation: the one that has the token of the settings, and those of a file.

The file holds names and SHA-256 digests of tokens, never a token. It is written as a whole under a
lock and read again when it changes, so that a token that was revoked is refused without a restart::

    {"version": 1, "customers": [{"name": str, "sha256": 64 hex digits, "sessions": int | null,
                                  "share": float, "created": ISO time}]}
"""

from __future__ import annotations

import datetime
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import override

from pocqueue.errors import SettingsError
from pocqueue.files import SharedFile
from pocqueue.settings import DelegationSettings, Settings
from pocqueue.web.door import digest, find_token

logger = logging.getLogger(__name__)

#: The customer whose token is that of the settings.
MAIN = "main"
FILE_NAME = "delegation-tokens.json"
_NAME_ALLOWED = "1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Customer(BaseModel):
    """The owner of a token."""

    model_config = ConfigDict(frozen=True)

    name: Name
    #: Of the token.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: Most sessions at a time; None: as many as all customers together may have.
    sessions: int | None = Field(default=None, ge=1, le=10_000)
    #: Weight of each of its sessions when GPUs are shared out.
    share: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)
    #: When the token was made, ISO 8601; empty for the token of the settings.
    created: str = ""

    def max_sessions(self, in_all: int) -> int:
        """Return how many sessions it may have at a time, out of `in_all` for all customers together."""
        return in_all if self.sessions is None else min(self.sessions, in_all)


class _Content(BaseModel):
    version: int
    customers: list[Customer]


def tokens_path(settings: Settings, delegation: DelegationSettings) -> Path:
    """Return the path of the file of customers."""
    return delegation.tokens_file or settings.state_dir / FILE_NAME


@dataclass(frozen=True)
class TokensFile(SharedFile):
    """The file of customers, as commands read and change it."""

    def read(self) -> list[Customer]:
        """Return the customers, by name; none if there is no file.

        Raises:
            SettingsError: the file cannot be read, or is no file of customers.
        """
        data = self.content()
        if data is None:
            return []
        try:
            content = _Content.model_validate_json(data)
        except ValidationError as exc:
            problem = exc.errors()[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the file"
            raise SettingsError(
                f"{self.path} is no file of customers ({place}: {problem['msg']}): mend it, or move "
                "it away and make the tokens anew with `pocqueue delegation token add NAME`."
            ) from None
        if content.version != 1:
            raise SettingsError(
                f"{self.path} has version {content.version}; this pocqueue reads version 1. Use the "
                "pocqueue that wrote it."
            )
        return sorted(content.customers, key=lambda customer: customer.name)

    def add(self, name: str, *, sessions: int | None = None, share: float = 1.0) -> str:
        """Add a customer; return its new token, which is kept nowhere.

        Raises:
            SettingsError: the name is taken or not allowed, or the file cannot be used.
        """
        token = secrets.token_urlsafe(32)
        try:
            customer = Customer(
                name=name,
                sha256=digest(token),
                sessions=sessions,
                share=share,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        except ValidationError as exc:
            problem = exc.errors()[0]
            field = str(problem["loc"][0])
            allowed = _NAME_ALLOWED if field == "name" else problem["msg"]
            raise SettingsError(f"{field} is {problem['input']!r}; allowed: {allowed}.") from None
        if name == MAIN:
            raise SettingsError(
                f"name is {MAIN!r}, which is whoever has DELEGATION_AUTH_TOKEN; choose another."
            )
        with self.locked():
            customers = self.read()
            if any(known.name == name for known in customers):
                raise SettingsError(
                    f"name is {name!r}, which has a token already: choose another, or take that "
                    f"away first with `pocqueue delegation token revoke {name}`."
                )
            self._write([*customers, customer])
        return token

    def revoke(self, name: str) -> None:
        """Take a customer's token away; its running sessions go on to their end.

        Raises:
            SettingsError: there is no such customer, or the file cannot be used.
        """
        with self.locked():
            customers = self.read()
            left = [customer for customer in customers if customer.name != name]
            if len(left) == len(customers):
                names = ", ".join(customer.name for customer in customers) or "none"
                raise SettingsError(
                    f"name is {name!r}, which has no token; those with one: {names}."
                )
            self._write(left)

    def _write(self, customers: list[Customer]) -> None:
        content = _Content(version=1, customers=customers).model_dump_json(indent=2)
        self.replace(f"{content}\n".encode())

    @override
    def unusable(self, done: str, exc: OSError) -> SettingsError:
        return SettingsError(
            f"{self.path}, the file of customers, cannot be {done} ({exc.strerror}): mend owner or mode of "
            "the file and its folder, or set DELEGATION_TOKENS_FILE to another place."
        )


class Customers:
    """All customers, as a running service knows them.

    Args:
        token: of the settings; its owner is customer `MAIN`.
        file: the others; read again when it changes.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, token: str, file: TokensFile) -> None:
        self._main = Customer(name=MAIN, sha256=digest(token))
        self._file = file
        self._stamp = self._look()
        #: The state of the file that could not be read, once that was logged.
        self._unread: tuple[int, ...] | None = None
        self._customers = [self._main, *file.read()]

    def find(self, token: str) -> Customer | None:
        """Return the owner of a token; None: it has none."""
        self._refresh()
        found = find_token(token, [customer.sha256 for customer in self._customers])
        return None if found is None else self._customers[found]

    def _refresh(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            self._customers = [self._main, *self._file.read()]
        except SettingsError as exc:
            # The customers of a moment ago are better than none, as somebody may be editing the file. It is
            # read again with the next request: a failure must not keep a revoked token alive.
            if stamp != self._unread:
                logger.error("DELEGATION keeps the customers that it knows: %s", exc)
            self._unread = stamp
            return
        self._stamp = stamp

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
