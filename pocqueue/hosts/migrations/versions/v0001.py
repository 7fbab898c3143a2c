"""The first tables.

The ledger is append-only: triggers refuse every UPDATE, DELETE and TRUNCATE of it, by whatever program.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SQLITE = """
CREATE TRIGGER ledger_no_{verb} BEFORE {verb} ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
"""
_POSTGRESQL = (
    """
CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$
""",
    """
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
EXECUTE FUNCTION ledger_is_append_only()
""",
)


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "announcement",
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("gpus", sa.String(), nullable=False),
        sa.Column("os", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("wallet", "hostname", name=op.f("pk_announcement")),
    )
    op.create_table(
        "audit",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "challenge",
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_challenge")),
    )
    op.create_table(
        "job_log",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "n", name=op.f("pk_job_log")),
    )
    op.create_table(
        "wallet",
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("proven_ms", sa.BigInteger()),
        sa.Column("banned_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_wallet")),
    )
    op.create_table(
        "node",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("proven", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("paused_until_ms", sa.BigInteger()),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("os", sa.String(), nullable=False),
        sa.Column("key", sa.String()),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("agent_version", sa.String()),
        sa.Column("isolation", sa.String(), nullable=False),
        sa.Column("kinds", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.Column("relay", sa.String()),
        sa.Column("socket", sa.String()),
        sa.ForeignKeyConstraint(["wallet"], ["wallet.address"], name=op.f("fk_node_wallet")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
    )
    op.create_index("ix_node_relay", "node", ["relay", "last_ms"], unique=False)
    op.create_index(op.f("ix_node_wallet"), "node", ["wallet"], unique=False)
    op.create_table(
        "payout",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("micro", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["wallet"], ["wallet.address"], name=op.f("fk_payout_wallet")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payout")),
    )
    op.create_index(op.f("ix_payout_batch"), "payout", ["batch"], unique=False)
    op.create_table(
        "token",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("proven", sa.Boolean(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_ms", sa.BigInteger()),
        sa.Column("node_id", sa.String()),
        sa.ForeignKeyConstraint(["wallet"], ["wallet.address"], name=op.f("fk_token_wallet")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_token")),
    )
    op.create_index(op.f("ix_token_wallet"), "token", ["wallet"], unique=False)
    op.create_table(
        "wallet_session",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet"], ["wallet.address"], name=op.f("fk_wallet_session_wallet")
        ),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_wallet_session")),
    )
    op.create_table(
        "gpu_load",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("uuid", sa.String(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("percent", sa.Float(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_gpu_load_node_id")),
        sa.PrimaryKeyConstraint("node_id", "uuid", "from_ms", name=op.f("pk_gpu_load")),
    )
    op.create_index("ix_gpu_load_from_ms", "gpu_load", ["from_ms"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("submitter", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("vram_mib", sa.Integer(), nullable=False),
        sa.Column("only_node", sa.String()),
        sa.Column("timeout_s", sa.Integer(), nullable=False),
        sa.Column("rate_micro", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.ForeignKeyConstraint(["only_node"], ["node.id"], name=op.f("fk_job_only_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index("ix_job_created_ms", "job", ["created_ms"], unique=False)
    op.create_index("ix_job_queue", "job", ["state", "priority", "created_ms"], unique=False)
    op.create_table(
        "ledger",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("wallet", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("ref", sa.String(), nullable=False),
        sa.Column("micro", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_ledger_node_id")),
        sa.ForeignKeyConstraint(["wallet"], ["wallet.address"], name=op.f("fk_ledger_wallet")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
        sa.UniqueConstraint("kind", "ref", name=op.f("uq_ledger_kind_ref")),
    )
    op.create_index("ix_ledger_node", "ledger", ["node_id"], unique=False)
    op.create_index("ix_ledger_wallet", "ledger", ["wallet", "node_id"], unique=False)
    op.create_table(
        "node_gpu",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("uuid", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("vram_mib", sa.Integer()),
        sa.Column("compute_capability", sa.String()),
        sa.Column("healthy", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_node_gpu_node_id")),
        sa.PrimaryKeyConstraint("node_id", "uuid", name=op.f("pk_node_gpu")),
    )
    op.create_table(
        "reputation",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("good", sa.Float(), nullable=False),
        sa.Column("bad", sa.Float(), nullable=False),
        sa.Column("streak", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_reputation_node_id")),
        sa.PrimaryKeyConstraint("node_id", "kind", name=op.f("pk_reputation")),
    )
    op.create_table(
        "self_test",
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_self_test_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_self_test")),
    )
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("relay", sa.String(), nullable=False),
        sa.Column("gpu_uuids", sa.String(), nullable=False),
        sa.Column("leased_ms", sa.BigInteger(), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("sent_ms", sa.BigInteger()),
        sa.Column("hard_until_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("outcome", sa.String()),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("claimed_ms", sa.BigInteger()),
        sa.Column("micro", sa.BigInteger(), nullable=False),
        sa.Column("reported_ms", sa.BigInteger()),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_attempt_node_id")),
        sa.PrimaryKeyConstraint("job_id", "n", name=op.f("pk_attempt")),
    )
    op.create_index("ix_attempt_node", "attempt", ["node_id", "leased_ms"], unique=False)
    op.create_index("ix_attempt_open", "attempt", ["ended_ms", "lease_until_ms"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(_SQLITE.format(verb=verb))
    else:
        for statement in _POSTGRESQL:
            op.execute(statement)
