"""What Alembic runs: it is handed an open connection, and opens none of its own."""

from __future__ import annotations

from alembic import context

from bul.accounts.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
