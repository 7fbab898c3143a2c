"""Versions of the tables, applied by alembic: by itself on SQLite, by `pocqueue hosts migrate` on PostgreSQL.

A version is a module of `versions/`, written by hand, which names the one before it; `HEAD` is the newest. Its
tables are spelled out there and not taken from `tables.py`, which goes on changing. One that was released is never
edited. A test says when versions and tables differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

#: The newest version.
HEAD = "0003"


def config(connection: Connection) -> Config:
    """Return alembic's configuration for a connection that is in a transaction."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", "pocqueue.hosts:migrations")
    found.set_main_option("path_separator", "os")
    found.attributes["connection"] = connection
    return found


def upgrade(connection: Connection) -> None:
    """Apply the versions that a database lacks, within the connection's transaction."""
    from alembic import command

    command.upgrade(config(connection), "head")
