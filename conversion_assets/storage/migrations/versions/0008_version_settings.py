"""Settings with each stored version, so that a change of theirs can be told from others."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"

TABLES = ("conversion_patterns", "conversion_pattern_history")


def upgrade() -> None:
    for table in TABLES:
        if op.get_bind().dialect.name == "sqlite":
            # SQLite checks a column where it is added, but cannot add a check afterwards.
            op.execute(
                f"ALTER TABLE {table} ADD COLUMN settings TEXT"
                f" CONSTRAINT {table}_settings_is_json_check"
                " CHECK (settings IS NULL OR json_valid(settings))"
            )
        else:
            op.add_column(table, sa.Column("settings", JSONB()))
