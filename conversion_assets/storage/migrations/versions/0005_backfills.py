"""Backfills: what was rebuilt for a client, how far it is, and who is at it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0006"

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
JSON = sa.Text().with_variant(JSONB(), "postgresql")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
TABLE = "backfills"
TIMES = ("as_of", "started_at", "finished_at", "lease_until")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        TABLE,
        sa.Column("backfill_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("stages", JSON, nullable=False),
        sa.Column("as_of", TIME, nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("progress", JSON, nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_until", TIME),
        sa.PrimaryKeyConstraint("backfill_id", name=op.f(f"{TABLE}_pkey")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f(f"{TABLE}_client_id_fkey")
        ),
        *(_sqlite_checks() if on_sqlite else []),
    )
    unfinished = sa.text("finished_at IS NULL")
    op.create_index(
        "backfills_unfinished_key",
        TABLE,
        ["client_id"],
        unique=True,
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )


def _check(name, sql):
    return sa.CheckConstraint(sql, name=op.f(f"{TABLE}_{name}_check"))


def _sqlite_checks():
    return [
        *(_check(f"{name}_is_utc", f"{name} GLOB '{UTC_GLOB}'") for name in TIMES),
        *(
            _check(f"{name}_is_json", f"{name} IS NULL OR json_valid({name})")
            for name in ("stages", "progress")
        ),
    ]
