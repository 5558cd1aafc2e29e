"""Forecasts: what patterns claimed, and what became of it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
TABLE = "pattern_forecasts"


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    stated = (
        "rate", "rate_low", "rate_high", "strength", "lift", "lift_low", "lift_high", "base_rate",
        "delay_days",
    )
    op.create_table(
        TABLE,
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("made_as_of", TIME, nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("pattern_type", sa.Text(), nullable=False),
        sa.Column("dimension", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in stated),
        sa.Column("horizon_days", sa.BigInteger(), nullable=False),
        sa.Column("due_as_of", TIME, nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("graded_as_of", TIME),
        sa.Column("n", sa.BigInteger()),
        sa.Column("k", sa.BigInteger()),
        sa.Column("expected", sa.Double()),
        sa.Column("variance", sa.Double()),
        sa.Column("base_k", sa.BigInteger()),
        sa.Column("is_judged", sa.Boolean()),
        sa.Column("is_inside", sa.Boolean()),
        sa.Column("brier", sa.Double()),
        sa.Column("brier_base", sa.Double()),
        sa.PrimaryKeyConstraint("client_id", "made_as_of", "cell", name=op.f(f"{TABLE}_pkey")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f(f"{TABLE}_client_id_fkey")
        ),
        _check("pattern_type_known", "pattern_type IN ('who', 'what', 'when', 'how')"),
        _check("graded_when_due", "graded_as_of IS NULL OR graded_as_of >= due_as_of"),
        *(_sqlite_checks() if on_sqlite else []),
    )


def _check(name, sql):
    return sa.CheckConstraint(sql, name=op.f(f"{TABLE}_{name}_check"))


def _sqlite_checks():
    return [
        *(_check(f"{c}_is_utc", f"{c} GLOB '{UTC_GLOB}'") for c in ("made_as_of", "due_as_of")),
        *(_check(f"{c}_is_boolean", f"{c} IN (0, 1)") for c in ("is_judged", "is_inside")),
    ]
