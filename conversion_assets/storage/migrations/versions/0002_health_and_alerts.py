"""Health: findings, the outbox of alerts, its channels, heartbeats."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
JSON = sa.Text().with_variant(JSONB(), "postgresql")
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
PATTERN_TYPES = ("who", "what", "when", "how")
SEVERITIES = ("high", "medium")
WAITING = sa.text("sent_at IS NULL AND refused_at IS NULL")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    table = "health_findings"
    op.create_table(
        table,
        sa.Column("finding_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("pattern_type", sa.Text()),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("numbers", JSON, nullable=False),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("resolved_at", TIME),
        sa.Column("acknowledged_at", TIME),
        sa.Column("told_at", TIME),
        _primary_key(table, "finding_id"),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f(f"{table}_client_id_fkey")
        ),
        _one_of(table, "pattern_type", PATTERN_TYPES),
        _one_of(table, "severity", SEVERITIES),
        *_sqlite_checks(
            on_sqlite,
            table,
            times=("first_seen_at", "last_seen_at", "resolved_at", "acknowledged_at", "told_at"),
            json=("numbers",),
        ),
    )
    op.create_index(op.f("health_findings_client_id_idx"), table, ["client_id"])
    table = "alert_outbox"
    op.create_table(
        table,
        sa.Column("id", ROW_NUMBER, nullable=False),
        sa.Column("message_key", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_error", sa.Text()),
        sa.Column("sent_at", TIME),
        sa.Column("refused_at", TIME),
        _primary_key(table, "id"),
        sa.UniqueConstraint("channel", "message_key", name=op.f("alert_outbox_channel_message_key_key")),
        *_sqlite_checks(
            on_sqlite, table, times=("created_at", "sent_at", "refused_at"), json=("payload",)
        ),
    )
    op.create_index(
        "alert_outbox_waiting_idx",
        table,
        ["channel", "id"],
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    table = "alert_channels"
    op.create_table(
        table,
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("address_hash", sa.Text(), nullable=False),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_until", TIME),
        sa.Column("next_attempt_at", TIME),
        sa.Column("last_sent_at", TIME),
        sa.Column("failures", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_error", sa.Text()),
        sa.Column("blocked_at", TIME),
        _primary_key(table, "channel"),
        *_sqlite_checks(
            on_sqlite,
            table,
            times=("lease_until", "next_attempt_at", "last_sent_at", "blocked_at"),
        ),
    )
    table = "heartbeats"
    op.create_table(
        table,
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("succeeded_at", TIME, nullable=False),
        sa.Column("detail", JSON, nullable=False),
        _primary_key(table, "name"),
        *_sqlite_checks(on_sqlite, table, times=("succeeded_at",), json=("detail",)),
    )


def _check(table, name, sql):
    return sa.CheckConstraint(sql, name=op.f(f"{table}_{name}_check"))


def _one_of(table, column, values):
    listed = ", ".join(f"'{value}'" for value in values)
    return _check(table, f"{column}_known", f"{column} IN ({listed})")


def _primary_key(table, *columns):
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"{table}_pkey"))


def _sqlite_checks(on_sqlite, table, times=(), json=()):
    if not on_sqlite:
        return []
    return [
        *(_check(table, f"{c}_is_utc", f"{c} GLOB '{UTC_GLOB}'") for c in times),
        *(_check(table, f"{c}_is_json", f"{c} IS NULL OR json_valid({c})") for c in json),
    ]
