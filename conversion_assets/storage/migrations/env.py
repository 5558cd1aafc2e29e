"""Alembic's entry: runs on the connection and within the transaction that `migrate` opened."""

from alembic import context

from conversion_assets.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
context.run_migrations()
