"""Facts of the last refresh for the check of health: drift, and whom it borrowed from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0005"

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
JSON = sa.Text().with_variant(JSONB(), "postgresql")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
FACTS, MEMBERS = "learning_facts", "pool_members"


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        FACTS,
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("as_of", TIME, nullable=False),
        sa.Column("computed_at", TIME, nullable=False),
        sa.Column("pool_id", sa.Text()),
        sa.Column("facts", JSON, nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f(f"{FACTS}_pkey")),
        _of_client(FACTS),
        *(_sqlite_checks() if on_sqlite else []),
    )
    op.create_table(
        MEMBERS,
        sa.Column("pool_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pool_id", "client_id", name=op.f(f"{MEMBERS}_pkey")),
        _of_client(MEMBERS),
    )
    op.create_index(op.f(f"{MEMBERS}_client_id_idx"), MEMBERS, ["client_id"])


def _of_client(table):
    name = op.f(f"{table}_client_id_fkey")
    return sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=name)


def _sqlite_checks():
    checks = [(f"{name}_is_utc", f"{name} GLOB '{UTC_GLOB}'") for name in ("as_of", "computed_at")]
    checks.append(("facts_is_json", "facts IS NULL OR json_valid(facts)"))
    return [sa.CheckConstraint(sql, name=op.f(f"{FACTS}_{name}_check")) for name, sql in checks]
