"""Tokens that wait for a machine, as their wallet's owner sees them. What gives and takes them stands in `owners`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, select

from pocqueue.hosts.errors import UnknownToken
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.tables import token


@dataclass(frozen=True, slots=True)
class OpenToken:
    """A token that can still be used. Nothing of it lets anybody in."""

    id: str  #: SHA-256 of the token
    created_ms: int
    expires_ms: int
    proven: bool  #: the wallet's owner asked for it
    address: str  #: network address of who asked


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that are open."""

    _db: Database
    _now_ms: Callable[[], int]

    def open(self, address: str) -> list[OpenToken]:
        """Return the tokens of a wallet that can still be used, newest first."""
        c = token.c
        query = select(c.hash, c.created_ms, c.expires_ms, c.proven, c.address)
        with self._db.read() as connection:
            rows = connection.execute(
                query.where(self._is_open(address)).order_by(c.created_ms.desc(), c.hash)
            )
            return [OpenToken(*row) for row in rows]

    def revoke(self, token_id: str, *, wallet: str) -> None:
        """Make a token worthless: whoever brings it is told "Invalid token".

        Args:
            token_id: its `OpenToken.id`.
            wallet: whose it has to be.

        Raises:
            UnknownToken: that wallet has none of this id that can be used.
        """
        with self._db.write() as connection:
            mine = and_(token.c.hash == token_id, self._is_open(wallet))
            if connection.execute(delete(token).where(mine)).rowcount == 0:
                raise UnknownToken
            note(connection, self._now_ms(), wallet, "token.revoke", token_id)

    def _is_open(self, address: str) -> ColumnElement[bool]:
        return and_(
            token.c.wallet == address,
            token.c.used_ms.is_(None),
            token.c.expires_ms > self._now_ms(),
        )
