"""Versions of the database schema, applied by `conversion_assets.storage.database.migrate`."""
