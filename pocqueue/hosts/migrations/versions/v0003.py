"""A node's own jobs are found by an index; that a node was heard changes none."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Change the indexes."""
    op.create_index("ix_job_only_node", "job", ["only_node"], unique=False)
    op.drop_index("ix_node_relay", "node")
    op.create_index("ix_node_relay", "node", ["relay", "state"], unique=False)
