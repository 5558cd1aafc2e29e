"""Erasures: what was asked to be erased, without saying who; the history lets go of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
TABLE = "erasures"
TIMES = ("asked_at", "done_at", "lifted_at")

# The history stays append-only but for the client that is being erased: its id stands in
# open_client_id within the erasing transaction and never outside of it.
SQLITE = (
    "DROP TRIGGER conversion_pattern_history_keep_delete",
    """CREATE TRIGGER conversion_pattern_history_keep_delete
    BEFORE DELETE ON conversion_pattern_history
    WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE open_client_id = OLD.client_id) BEGIN
        SELECT RAISE(ABORT, 'conversion_pattern_history is append-only');
    END""",
)
POSTGRESQL = (
    """CREATE FUNCTION refuse_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT 1 FROM erasures WHERE open_client_id = OLD.client_id) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
    END $$""",
    "DROP TRIGGER conversion_pattern_history_keep ON conversion_pattern_history",
    """CREATE TRIGGER conversion_pattern_history_keep
    BEFORE UPDATE OR TRUNCATE ON conversion_pattern_history
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()""",
    """CREATE TRIGGER conversion_pattern_history_keep_delete
    BEFORE DELETE ON conversion_pattern_history
    FOR EACH ROW EXECUTE FUNCTION refuse_deletion()""",
)


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        TABLE,
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("client_hash", sa.Text(), nullable=False),
        sa.Column("lead_hash", sa.Text()),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("done_at", TIME),
        sa.Column("lifted_at", TIME),
        sa.Column("open_client_id", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f(f"{TABLE}_pkey")),
        *(_sqlite_checks() if on_sqlite else []),
    )
    op.create_index(op.f(f"{TABLE}_client_hash_idx"), TABLE, ["client_hash"])
    for statement in SQLITE if on_sqlite else POSTGRESQL:
        op.execute(sa.text(statement))


def _sqlite_checks():
    return [
        sa.CheckConstraint(
            f"{column} GLOB '{UTC_GLOB}'", name=op.f(f"{TABLE}_{column}_is_utc_check")
        )
        for column in TIMES
    ]
