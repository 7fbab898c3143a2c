"""The tables of the GPU hosts. Only `hosts.store` and the migrations know them.

Ids are UUIDs as text, times are Unix milliseconds of the server's clock (``…_ms``), money is whole micro-HYPER
(10^-6 HYPER). What is unknown is NULL. Rows that belong together in time are written in one transaction.

A wallet owns nodes; a token lets one node in; a node has GPUs. A job has attempts, each a lease of one node; what
an attempt earned is a row of the ledger, which can only grow: triggers refuse UPDATE and DELETE
(`migrations/versions`).
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)
from typing_extensions import override

#: Names of constraints, so that a migration can change them.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class CleanText(TypeDecorator[str]):
    """Text that both databases take: strangers send NUL and half surrogate pairs, which become U+FFFD."""

    impl = String
    cache_ok = True

    @override
    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return (
            value.encode("utf-16", "surrogatepass")
            .decode("utf-16", "replace")
            .replace("\0", "\ufffd")
        )


class Json(TypeDecorator[Any]):
    """JSON in ASCII letters, which both databases take whatever is in it."""

    impl = String
    cache_ok = True

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


_Text = CleanText
_Ms = BigInteger
_Serial = BigInteger().with_variant(Integer, "sqlite")

wallet = Table(
    "wallet",
    metadata,
    Column("address", _Text, primary_key=True),  # base58 of an ed25519 public key
    Column("proven_ms", _Ms),  # when somebody first showed that it is his
    Column("banned_ms", _Ms),
)

#: Texts that wait for a wallet's signature.
challenge = Table(
    "challenge",
    metadata,
    Column("nonce", _Text, primary_key=True),
    Column("wallet", _Text, nullable=False),
    Column("text", _Text, nullable=False),  # what the wallet signs
    Column("expires_ms", _Ms, nullable=False),
)

wallet_session = Table(
    "wallet_session",
    metadata,
    Column("hash", _Text, primary_key=True),  # SHA-256 of the cookie
    Column("wallet", _Text, ForeignKey("wallet.address"), nullable=False),
    Column("expires_ms", _Ms, nullable=False),
)

token = Table(
    "token",
    metadata,
    Column("hash", _Text, primary_key=True),  # SHA-256 of the token
    Column("wallet", _Text, ForeignKey("wallet.address"), nullable=False, index=True),
    Column("proven", Boolean, nullable=False),  # the wallet's owner asked for it
    Column("address", _Text, nullable=False),  # network address of who asked
    Column("created_ms", _Ms, nullable=False),
    Column("expires_ms", _Ms, nullable=False),
    Column("used_ms", _Ms),
    Column("node_id", _Text),  # that it let in
)

node = Table(
    "node",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("wallet", _Text, ForeignKey("wallet.address"), nullable=False, index=True),
    Column("proven", Boolean, nullable=False),  # the wallet's owner wants it; else its pay is held
    Column("state", _Text, nullable=False),  # active | draining | revoked | banned
    Column("drained_by", _Text),  # while it is draining: a wallet or `admin`
    Column("paused_until_ms", _Ms),
    Column("hostname", _Text, nullable=False),
    Column("os", _Text, nullable=False),
    Column("key", _Text),  # ed25519 public key, 64 hex digits
    Column("protocol", Integer, nullable=False),  # 0: polls; 1: today's agents; 2
    Column("agent_version", _Text),
    Column("isolation", _Text, nullable=False),  # as the node says: none | bubblewrap | container
    Column("kinds", Json, nullable=False),  # of jobs that it takes
    Column("address", _Text, nullable=False),  # network address that it last came from
    Column("first_ms", _Ms, nullable=False),
    Column("last_ms", _Ms, nullable=False),  # last heard of; written every few seconds
    Column("relay", _Text),  # gateway that has its connection; NULL: not connected
    Column("socket", _Text),  # id of that connection
    # Not by `last_ms`, which changes with each heartbeat.
    Index("ix_node_relay", "relay", "state"),
)

node_gpu = Table(
    "node_gpu",
    metadata,
    Column("node_id", _Text, ForeignKey("node.id"), primary_key=True),
    Column("uuid", _Text, primary_key=True),  # NVML's; of agents that send none, `index-N`
    Column("position", Integer, nullable=False),  # 0, 1, …
    Column("name", _Text, nullable=False),
    Column("vram_mib", Integer),
    Column("compute_capability", _Text),  # such as 8.9
    Column("healthy", Boolean, nullable=False),
    Column("reason", _Text),  # why it is not
    # Of the pool of rounds, which no node's GPU is in yet.
    Column("route", _Text),  # Celery queue of its messages; NULL: its own
    Column("tier", _Text, nullable=False, server_default="new"),  # own | proven | new
)

#: Load of the last day, one row a quarter of an hour.
gpu_load = Table(
    "gpu_load",
    metadata,
    Column("node_id", _Text, ForeignKey("node.id"), primary_key=True),
    Column("uuid", _Text, primary_key=True),
    Column("from_ms", _Ms, primary_key=True),  # start of the quarter
    Column("percent", Float, nullable=False),  # mean, 0 to 100
    Column("samples", Integer, nullable=False),
    Index("ix_gpu_load_from_ms", "from_ms"),
)

#: The newest self-test of a node.
self_test = Table(
    "self_test",
    metadata,
    Column("node_id", _Text, ForeignKey("node.id"), primary_key=True),
    Column("at_ms", _Ms, nullable=False),
    Column("rows", Json, nullable=False),
)

job = Table(
    "job",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("kind", _Text, nullable=False),  # test | command | container
    Column("spec", Json, nullable=False),  # as `hosts.commands` made it
    Column("submitter", _Text, nullable=False),  # a wallet, `admin` or `server`
    Column(
        "state", _Text, nullable=False
    ),  # queued | leased | running | completed | failed | cancelled
    Column("reason", _Text),  # why it failed, or why it is queued again
    Column("priority", Integer, nullable=False),  # higher goes first
    Column("gpus", Integer, nullable=False),  # that it needs
    Column("vram_mib", Integer, nullable=False),  # on each
    Column("only_node", _Text, ForeignKey("node.id")),  # NULL: any node
    Column("timeout_s", Integer, nullable=False),
    Column("rate_micro", Integer, nullable=False),  # pay for a second
    Column("max_attempts", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),  # number of the newest one; 0: none yet
    Column("created_ms", _Ms, nullable=False),
    Column("ended_ms", _Ms),
    Index("ix_job_queue", "state", "priority", "created_ms"),
    Index("ix_job_created_ms", "created_ms"),
    Index("ix_job_only_node", "only_node"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", _Text, ForeignKey("job.id"), primary_key=True),
    Column("n", Integer, primary_key=True),  # 1, 2, …
    Column("node_id", _Text, ForeignKey("node.id"), nullable=False),
    Column("relay", _Text, nullable=False),  # gateway that delivers it
    Column("gpu_uuids", Json, nullable=False),  # that are the job's until the attempt ends
    Column("leased_ms", _Ms, nullable=False),
    Column("lease_until_ms", _Ms, nullable=False),
    Column(
        "sent_ms", _Ms
    ),  # when it went to the node; once the node says that it has begun, when that was
    Column("hard_until_ms", _Ms),  # no lease is longer: `sent_ms`, time-out and a grace
    Column("ended_ms", _Ms),
    Column("outcome", _Text),  # see `leases.Outcome`; NULL: open
    Column("exit_code", Integer),
    Column("claimed_ms", _Ms),  # how long it took, as the node says
    Column("micro", BigInteger, nullable=False),  # what it earned
    Column("reported_ms", _Ms),  # when the node's result came, in time or not
    Index("ix_attempt_open", "ended_ms", "lease_until_ms"),
    Index("ix_attempt_node", "node_id", "leased_ms"),
)

job_log = Table(
    "job_log",
    metadata,
    Column("job_id", _Text, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("text", _Text, nullable=False),
    Column("truncated", Boolean, nullable=False),
)

#: What a node earned and what was paid out: its balance is the sum. Never changed, only added to.
ledger = Table(
    "ledger",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at_ms", _Ms, nullable=False),
    Column("wallet", _Text, ForeignKey("wallet.address"), nullable=False),
    Column("node_id", _Text, ForeignKey("node.id"), nullable=False),
    Column("kind", _Text, nullable=False),  # job | payout | forfeit | correction
    Column("ref", _Text, nullable=False),  # the fact that it pays for: attempt:JOB:N, …
    Column("micro", BigInteger, nullable=False),  # below 0: taken out
    UniqueConstraint("kind", "ref"),
    Index("ix_ledger_wallet", "wallet", "node_id"),
    Index("ix_ledger_node", "node_id"),
)

payout = Table(
    "payout",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("batch", _Text, nullable=False, index=True),  # those that were made together
    Column("wallet", _Text, ForeignKey("wallet.address"), nullable=False),
    Column("micro", BigInteger, nullable=False),
    Column("at_ms", _Ms, nullable=False),
)

#: How a node has done with a kind of job; counts halve in a week (`hosts.reputation`).
reputation = Table(
    "reputation",
    metadata,
    Column("node_id", _Text, ForeignKey("node.id"), primary_key=True),
    Column("kind", _Text, primary_key=True),
    Column("good", Float, nullable=False),
    Column("bad", Float, nullable=False),
    Column("streak", Integer, nullable=False),  # good ones since the last bad one
    Column("at_ms", _Ms, nullable=False),
)

#: Machines that announce themselves without a token: shown, never used.
announcement = Table(
    "announcement",
    metadata,
    Column("wallet", _Text, primary_key=True),
    Column("hostname", _Text, primary_key=True),
    Column("gpus", Json, nullable=False),
    Column("os", _Text, nullable=False),
    Column("at_ms", _Ms, nullable=False),
)

#: Who did what: submissions, cancellations, bans, payouts, sign-ins.
audit = Table(
    "audit",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at_ms", _Ms, nullable=False),
    Column("actor", _Text, nullable=False),
    Column("action", _Text, nullable=False),
    Column("subject", _Text, nullable=False),
)
