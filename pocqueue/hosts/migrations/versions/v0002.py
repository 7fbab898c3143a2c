"""Drains know who set them; a GPU has room for what it will be in the pool of rounds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

#: Who drained the nodes that are drained now stands in the audit.
_DRAINED_BY = """
UPDATE node SET drained_by = COALESCE(
    (SELECT actor FROM audit WHERE action = 'node.draining' AND subject = node.id ORDER BY audit.id DESC LIMIT 1),
    wallet
) WHERE state = 'draining'
"""


def upgrade() -> None:
    """Add the columns."""
    op.add_column("node", sa.Column("drained_by", sa.String()))
    op.execute(_DRAINED_BY)
    op.add_column("node_gpu", sa.Column("route", sa.String()))
    op.add_column("node_gpu", sa.Column("tier", sa.String(), nullable=False, server_default="new"))
