"""Who did what, for whoever has to find out later."""

from __future__ import annotations

from sqlalchemy import Connection

from pocqueue.hosts.tables import audit


def note(connection: Connection, at_ms: int, actor: str, action: str, subject: str) -> None:
    """Write down within a transaction what somebody does in it.

    Args:
        actor: a wallet, ``admin`` or ``server``.
        action: such as ``node.ban``.
        subject: id of what it was done to.
    """
    row = {"at_ms": at_ms, "actor": actor, "action": action, "subject": subject}
    connection.execute(audit.insert().values(row))
