"""Run by alembic: applies versions on the connection that `migrations.config` was given."""

from __future__ import annotations

from alembic import context

from pocqueue.hosts.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot change a column: the table is made anew.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
