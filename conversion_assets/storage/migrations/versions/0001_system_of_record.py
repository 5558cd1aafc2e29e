"""The system of record: clients, leads, activities, patterns, and the tracking of changes."""

import secrets

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
JSON = sa.Text().with_variant(JSONB(), "postgresql")
UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
STATUSES = ("active", "trialing", "paused", "cancelled")
PATTERN_TYPES = ("who", "what", "when", "how")
OUTCOMES = ("found", "none_found", "not_enough_data", "failed")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    _create_sources(on_sqlite)
    _create_patterns(on_sqlite)
    _create_tracking()
    for statement in SQLITE if on_sqlite else POSTGRESQL:
        op.get_bind().exec_driver_sql(statement)


def _check(table, name, sql):
    return sa.CheckConstraint(sql, name=op.f(f"{table}_{name}_check"))


def _one_of(table, column, values):
    listed = ", ".join(f"'{value}'" for value in values)
    return _check(table, f"{column}_known", f"{column} IN ({listed})")


def _sqlite_checks(on_sqlite, table, times=(), flags=(), numbers=(), json=()):
    if not on_sqlite:
        return []
    return [
        *(_check(table, f"{c}_is_utc", f"{c} GLOB '{UTC_GLOB}'") for c in times),
        *(_check(table, f"{c}_is_number", f"typeof({c}) <> 'text'") for c in numbers),
        *(_check(table, f"{c}_is_boolean", f"{c} IN (0, 1)") for c in flags),
        *(_check(table, f"{c}_is_json", f"{c} IS NULL OR json_valid({c})") for c in json),
    ]


def _client_key(table):
    return sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f(f"{table}_client_id_fkey"))


def _primary_key(table, *columns):
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"{table}_pkey"))


def _create_partial_index(name, table, condition):
    where = sa.text(condition)
    op.create_index(name, table, ["client_id"], sqlite_where=where, postgresql_where=where)


def _create_sources(on_sqlite):
    op.create_table(
        "clients",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("timezone", sa.Text()),
        sa.Column(
            "subscription_status", sa.Text(), nullable=False, server_default=sa.text("'active'")
        ),
        sa.Column("is_paused", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("als_learned_weights", JSON),
        sa.Column("als_weights_updated_at", TIME),
        sa.Column("conversion_sample_count", sa.BigInteger()),
        sa.Column("pool_opt_in", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        sa.Column("deleted_at", TIME),
        sa.Column("change_id", sa.BigInteger()),
        _primary_key("clients", "id"),
        _check("clients", "id_length", "length(id) BETWEEN 1 AND 200"),
        _one_of("clients", "subscription_status", STATUSES),
        *_sqlite_checks(
            on_sqlite,
            "clients",
            times=("als_weights_updated_at", "created_at", "updated_at", "deleted_at"),
            flags=("is_paused", "pool_opt_in"),
            json=("als_learned_weights",),
        ),
    )
    op.create_table(
        "leads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("first_name", sa.Text()),
        sa.Column("last_name", sa.Text()),
        sa.Column("email", sa.Text()),
        sa.Column("phone", sa.Text()),
        sa.Column("linkedin_url", sa.Text()),
        sa.Column("title", sa.Text()),
        sa.Column("company_name", sa.Text()),
        sa.Column("industry", sa.Text()),
        sa.Column("employee_count", sa.BigInteger()),
        sa.Column("country", sa.Text()),
        sa.Column("timezone", sa.Text()),
        sa.Column("source", sa.Text()),
        sa.Column("is_new_role", sa.Boolean()),
        sa.Column("is_hiring", sa.Boolean()),
        sa.Column("recently_funded", sa.Boolean()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("als_score", sa.Double()),
        sa.Column("als_tier", sa.Text()),
        sa.Column("als_components", JSON),
        sa.Column("als_weights_used", JSON),
        sa.Column("scored_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("converted_at", TIME),
        sa.Column("updated_at", TIME),
        sa.Column("deleted_at", TIME),
        sa.Column("change_id", sa.BigInteger()),
        _primary_key("leads", "client_id", "id"),
        _client_key("leads"),
        _check("leads", "id_length", "length(id) BETWEEN 1 AND 200"),
        *_sqlite_checks(
            on_sqlite,
            "leads",
            times=("scored_at", "created_at", "converted_at", "updated_at", "deleted_at"),
            flags=("is_new_role", "is_hiring", "recently_funded"),
            numbers=("employee_count", "als_score"),
            json=("als_components", "als_weights_used"),
        ),
    )
    op.create_index(op.f("leads_change_id_idx"), "leads", ["change_id"])
    _create_partial_index("leads_converted_idx", "leads", "converted_at IS NOT NULL")
    op.create_table(
        "activities",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("lead_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.Text()),
        sa.Column("channel", sa.Text()),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("touch_number", sa.BigInteger()),
        sa.Column("sequence_id", sa.Text()),
        sa.Column("content_snapshot", JSON),
        sa.Column("metadata", JSON),
        sa.Column("led_to_booking", sa.Boolean()),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("created_at", TIME),
        sa.Column("change_id", sa.BigInteger()),
        _primary_key("activities", "client_id", "id"),
        sa.ForeignKeyConstraint(
            ["client_id", "lead_id"],
            ["leads.client_id", "leads.id"],
            name=op.f("activities_client_id_lead_id_fkey"),
            ondelete="CASCADE",
        ),
        _check("activities", "id_length", "length(id) BETWEEN 1 AND 200"),
        *_sqlite_checks(
            on_sqlite,
            "activities",
            times=("occurred_at", "created_at"),
            flags=("led_to_booking",),
            numbers=("touch_number",),
            json=("content_snapshot", "metadata"),
        ),
    )
    op.create_index(op.f("activities_client_id_lead_id_idx"), "activities", ["client_id", "lead_id"])
    op.create_index(op.f("activities_change_id_idx"), "activities", ["change_id"])
    _create_partial_index("activities_booked_idx", "activities", "action = 'meeting_booked'")


def _pattern_columns(on_sqlite, table):
    return [
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("pattern_type", sa.Text(), nullable=False),
        sa.Column("patterns", JSON, nullable=False),
        sa.Column("sample_size", sa.BigInteger(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("as_of", TIME, nullable=False),
        sa.Column("computed_at", TIME, nullable=False),
        sa.Column("valid_until", TIME, nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("input_fingerprint", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        _client_key(table),
        _one_of(table, "pattern_type", PATTERN_TYPES),
        _check(table, "confidence_range", "confidence >= 0 AND confidence <= 1"),
        _check(table, "sample_size_range", "sample_size >= 0"),
        *_sqlite_checks(
            on_sqlite, table, times=("as_of", "computed_at", "valid_until"), json=("patterns",)
        ),
    ]


def _create_patterns(on_sqlite):
    table = "conversion_patterns"
    op.create_table(
        table,
        *_pattern_columns(on_sqlite, table),
        _primary_key(table, "client_id", "pattern_type"),
    )
    table = "conversion_pattern_history"
    op.create_table(
        table,
        *_pattern_columns(on_sqlite, table),
        _primary_key(
            table, "client_id", "pattern_type", "as_of", "code_version", "input_fingerprint"
        ),
    )
    table = "pattern_outcomes"
    op.create_table(
        table,
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("pattern_type", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("error", sa.Text()),
        sa.Column("as_of", TIME, nullable=False),
        sa.Column("computed_at", TIME, nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("input_fingerprint", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        _client_key(table),
        _primary_key(table, "client_id", "pattern_type"),
        _one_of(table, "pattern_type", PATTERN_TYPES),
        _one_of(table, "outcome", OUTCOMES),
        *_sqlite_checks(on_sqlite, table, times=("as_of", "computed_at")),
    )


def _create_tracking():
    op.create_table(
        "row_deletions",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("change_id", sa.BigInteger(), nullable=False),
        _primary_key("row_deletions", "table_name", "client_id", "id"),
    )
    op.create_index(
        op.f("row_deletions_table_name_change_id_idx"), "row_deletions", ["table_name", "change_id"]
    )
    counter = op.create_table(
        "change_counter",
        sa.Column("only_row", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        _primary_key("change_counter", "only_row"),
        _check("change_counter", "only_row", "only_row = 1"),
    )
    op.bulk_insert(counter, [{"only_row": 1, "value": 0, "epoch": secrets.token_hex(8)}])


def _sqlite_tracking(table, client_id, columns):
    """Number every row that a foreign writer inserts or updates without a number of its own.

    Our own bulk writer sets change_id, and then a trigger costs no more than its WHEN clause.
    """
    same_row = f"{client_id} = NEW.{client_id} AND id = NEW.id"
    if client_id == "id":
        same_row = "id = NEW.id"
    number = f"""
        UPDATE change_counter SET value = value + 1;
        UPDATE {table} SET change_id = (SELECT value FROM change_counter) WHERE {same_row};"""
    return [
        f"""CREATE TRIGGER {table}_number_insert AFTER INSERT ON {table}
        WHEN NEW.change_id IS NULL BEGIN {number}
        END""",
        f"""CREATE TRIGGER {table}_number_update AFTER UPDATE OF {columns} ON {table}
        WHEN NEW.change_id IS OLD.change_id BEGIN {number}
        END""",
    ]


def _sqlite_deletions(table):
    record = f"""
        UPDATE change_counter SET value = value + 1;
        INSERT INTO row_deletions (table_name, client_id, id, change_id)
        SELECT '{table}', OLD.client_id, OLD.id, value FROM change_counter WHERE true
        ON CONFLICT (table_name, client_id, id) DO UPDATE SET change_id = excluded.change_id;"""
    return [
        f"""CREATE TRIGGER {table}_record_delete AFTER DELETE ON {table} BEGIN {record}
        END""",
        # A row whose key changes is gone under the old one.
        f"""CREATE TRIGGER {table}_record_rename AFTER UPDATE OF client_id, id ON {table}
        WHEN NEW.client_id <> OLD.client_id OR NEW.id <> OLD.id BEGIN {record}
        END""",
    ]


# What the pipeline itself writes to a client (learned weights, their time, the sample count) is no
# change of the source: else every learning run would ask for the next one.
CLIENT_SOURCE_COLUMNS = (
    "id, name, timezone, subscription_status, is_paused, pool_opt_in, created_at, updated_at, "
    "deleted_at"
)
LEAD_COLUMNS = (
    "id, client_id, first_name, last_name, email, phone, linkedin_url, title, company_name, "
    "industry, employee_count, country, timezone, source, is_new_role, is_hiring, "
    "recently_funded, status, als_score, als_tier, als_components, als_weights_used, scored_at, "
    "created_at, converted_at, updated_at, deleted_at"
)
ACTIVITY_COLUMNS = (
    "id, client_id, lead_id, campaign_id, channel, action, touch_number, sequence_id, "
    "content_snapshot, metadata, led_to_booking, occurred_at, created_at"
)

SQLITE = [
    *_sqlite_tracking("clients", "id", CLIENT_SOURCE_COLUMNS),
    *_sqlite_tracking("leads", "client_id", LEAD_COLUMNS),
    *_sqlite_tracking("activities", "client_id", ACTIVITY_COLUMNS),
    *_sqlite_deletions("leads"),
    *_sqlite_deletions("activities"),
    """CREATE TRIGGER conversion_pattern_history_keep_update
    BEFORE UPDATE ON conversion_pattern_history BEGIN
        SELECT RAISE(ABORT, 'conversion_pattern_history is append-only');
    END""",
    """CREATE TRIGGER conversion_pattern_history_keep_delete
    BEFORE DELETE ON conversion_pattern_history BEGIN
        SELECT RAISE(ABORT, 'conversion_pattern_history is append-only');
    END""",
    # INSERT OR REPLACE deletes without firing the trigger above: keep the stored row instead.
    """CREATE TRIGGER conversion_pattern_history_keep_replace
    BEFORE INSERT ON conversion_pattern_history
    WHEN EXISTS (
        SELECT 1 FROM conversion_pattern_history
        WHERE client_id = NEW.client_id AND pattern_type = NEW.pattern_type
        AND as_of = NEW.as_of AND code_version = NEW.code_version
        AND input_fingerprint = NEW.input_fingerprint
    ) BEGIN
        SELECT RAISE(IGNORE);
    END""",
]


def _postgresql_tracking(table, columns):
    return [
        f"ALTER TABLE {table} ALTER COLUMN change_id"
        " SET DEFAULT pg_current_xact_id()::text::bigint",
        # The WHEN clause runs without entering the function: rows that our bulk writer numbered
        # and updates that change nothing cost next to nothing.
        f"""CREATE TRIGGER {table}_number_insert BEFORE INSERT ON {table} FOR EACH ROW
        WHEN (NEW.change_id IS NULL) EXECUTE FUNCTION number_change()""",
        f"""CREATE TRIGGER {table}_number_update BEFORE UPDATE OF {columns} ON {table} FOR EACH ROW
        WHEN (NEW.change_id IS NOT DISTINCT FROM OLD.change_id AND OLD.* IS DISTINCT FROM NEW.*)
        EXECUTE FUNCTION number_change()""",
    ]


def _postgresql_deletions(table):
    return [
        f"""CREATE TRIGGER {table}_record_delete AFTER DELETE ON {table}
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION record_deletions()""",
        f"""CREATE TRIGGER {table}_record_truncate BEFORE TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION record_truncation()""",
        f"""CREATE TRIGGER {table}_record_rename AFTER UPDATE OF client_id, id ON {table}
        FOR EACH ROW WHEN (OLD.client_id <> NEW.client_id OR OLD.id <> NEW.id)
        EXECUTE FUNCTION record_rename()""",
    ]


# A percent sign is doubled for the driver.
POSTGRESQL = [
    """CREATE FUNCTION number_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.change_id := pg_current_xact_id()::text::bigint;
        RETURN NEW;
    END $$""",
    """CREATE FUNCTION record_deletions() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO row_deletions (table_name, client_id, id, change_id)
        SELECT TG_TABLE_NAME, client_id, id, pg_current_xact_id()::text::bigint FROM gone
        ON CONFLICT (table_name, client_id, id) DO UPDATE SET change_id = excluded.change_id;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION record_truncation() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format(
            'INSERT INTO row_deletions (table_name, client_id, id, change_id)'
            ' SELECT %%L, client_id, id, pg_current_xact_id()::text::bigint FROM %%I.%%I'
            ' ON CONFLICT (table_name, client_id, id) DO UPDATE SET change_id = excluded.change_id',
            TG_TABLE_NAME, TG_TABLE_SCHEMA, TG_TABLE_NAME);
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION record_rename() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO row_deletions (table_name, client_id, id, change_id)
        VALUES (TG_TABLE_NAME, OLD.client_id, OLD.id, pg_current_xact_id()::text::bigint)
        ON CONFLICT (table_name, client_id, id) DO UPDATE SET change_id = excluded.change_id;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '%% is append-only', TG_TABLE_NAME;
    END $$""",
    *_postgresql_tracking("clients", CLIENT_SOURCE_COLUMNS),
    *_postgresql_tracking("leads", LEAD_COLUMNS),
    *_postgresql_tracking("activities", ACTIVITY_COLUMNS),
    *_postgresql_deletions("leads"),
    *_postgresql_deletions("activities"),
    """CREATE TRIGGER conversion_pattern_history_keep
    BEFORE UPDATE OR DELETE OR TRUNCATE ON conversion_pattern_history
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()""",
]
