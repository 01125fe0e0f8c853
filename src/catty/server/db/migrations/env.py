"""What Alembic runs: migrations on the connection that `db.migrate` hands over."""

from alembic import context

from catty.server.db.schema import metadata

# Batch mode: SQLite cannot alter tables in place.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
