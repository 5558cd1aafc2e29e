"""The tables of the system of record, on SQLite and PostgreSQL alike.

Rules that hold in the database itself, whoever writes: keys and foreign keys within one client,
closed vocabularies, confidence within [0, 1], times in UTC, an append-only history. Triggers
(change tracking, append-only) stand in the migrations; `conversion_assets.storage.database.migrate`
is therefore the only way to make a database that is fit for use.

Lead and activity ids are unique per client, not globally: a client's id can neither collide with
another's nor reveal that it exists.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine, UserDefinedType

from conversion_assets.domain.terms import (
    BOOKING_ACTION,
    OutcomeKind,
    PatternType,
    Severity,
    SubscriptionStatus,
)

ID_LENGTH = 200
"""Longest id, characters. Two ids of 4-byte characters still fit one PostgreSQL index entry."""

_SQLITE_TIME_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)


def sqlite_time(value: datetime) -> str:
    """Text of an aware time as SQLite stores it: fixed width, so that text order is time order.

    Raises:
        ValueError: the time is naive.

    Example:
        >>> sqlite_time(datetime(2026, 1, 2, tzinfo=UTC))
        '2026-01-02T00:00:00.000000Z'
    """
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(f"time {value.isoformat()} has no zone; give it one, for example +00:00")
    # strftime does not pad years below 1000 on every platform; isoformat does.
    utc = value.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="microseconds") + "Z"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time: TIMESTAMPTZ on PostgreSQL, fixed-width ISO text in UTC on SQLite.

    A naive time is refused; what is read is always in UTC.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Column type on one database."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(27))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Check the zone and convert to UTC."""
        if value is None:
            return None
        stored = sqlite_time(value)
        return stored if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read back as a time in UTC."""
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value).astimezone(UTC)
        assert isinstance(value, datetime)  # noqa: S101 - both drivers give text or a time
        return value.astimezone(UTC)


class JsonText(UserDefinedType[str]):
    """JSON handed over and returned as text: JSONB on PostgreSQL, TEXT on SQLite.

    JSONB does not keep the text as written (order of keys, spelling of numbers); whoever compares
    bytes compares them after the pydantic model, see `document_text.canonical_json`.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Column type where nothing else is said."""
        return "TEXT"

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """The psycopg driver parses JSONB; give text back."""

        def process(value: Any) -> str | None:
            if value is None:
                return None
            return json.dumps(value, ensure_ascii=False)

        return process if dialect.name == "postgresql" else None


@compiles(JsonText, "postgresql")
def _jsonb(_type: JsonText, _compiler: Any, **_: Any) -> str:
    return "JSONB"


# SQLite numbers rows by itself only in a column of type INTEGER.
_ROW_NUMBER = BigInteger().with_variant(Integer(), "sqlite")

_WAITING = text("sent_at IS NULL AND refused_at IS NULL")
"""Rows that wait are few beside those sent: the index holds only them."""

_UNFINISHED = text("finished_at IS NULL")

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


def _time(name: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, UtcDateTime(), nullable=nullable)


def _flag(name: str) -> Column[Any]:
    return Column(name, Boolean(create_constraint=False), nullable=True)


def _one_of(
    column: str, values: type[PatternType | OutcomeKind | SubscriptionStatus | Severity]
) -> Any:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _id_length(column: str) -> CheckConstraint:
    return CheckConstraint(f"length({column}) BETWEEN 1 AND {ID_LENGTH}", name=f"{column}_length")


def _sqlite_checks(
    *,
    times: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    json_columns: tuple[str, ...] = (),
) -> list[Any]:
    """What PostgreSQL's types refuse and SQLite's would take: a naive time, a flag 'yes'."""
    checks = [(f"{column}_is_utc", f"{column} GLOB '{_SQLITE_TIME_GLOB}'") for column in times]
    checks += [(f"{column}_is_number", f"typeof({column}) <> 'text'") for column in numbers]
    checks += [(f"{column}_is_boolean", f"{column} IN (0, 1)") for column in flags]
    checks += [
        (f"{column}_is_json", f"{column} IS NULL OR json_valid({column})")
        for column in json_columns
    ]
    return [CheckConstraint(text(sql), name=name).ddl_if(dialect="sqlite") for name, sql in checks]


def _partial_index(name: str, column: str, condition: str) -> Index:
    where = text(condition)
    return Index(name, column, sqlite_where=where, postgresql_where=where)


def _change_id() -> Column[Any]:
    # Filled by a default (PostgreSQL) or a trigger (SQLite) where the writer leaves it out.
    return Column("change_id", BigInteger, nullable=True)


clients = Table(
    "clients",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text),
    Column("timezone", Text),
    Column(
        "subscription_status",
        Text,
        nullable=False,
        server_default=text(f"'{SubscriptionStatus.ACTIVE}'"),
    ),
    Column("is_paused", Boolean, nullable=False, server_default=false()),
    Column("ideal_profile", JsonText),
    Column("als_learned_weights", JsonText),
    _time("als_weights_updated_at"),
    Column("conversion_sample_count", BigInteger),
    Column("pool_opt_in", Boolean, nullable=False, server_default=false()),
    _time("created_at", nullable=False),
    _time("updated_at"),
    _time("deleted_at"),
    _change_id(),
    _id_length("id"),
    _one_of("subscription_status", SubscriptionStatus),
    *_sqlite_checks(
        times=("als_weights_updated_at", "created_at", "updated_at", "deleted_at"),
        flags=("is_paused", "pool_opt_in"),
        json_columns=("ideal_profile", "als_learned_weights"),
    ),
)

leads = Table(
    "leads",
    metadata,
    Column("id", Text, nullable=False),
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    Column("first_name", Text),
    Column("last_name", Text),
    Column("email", Text),
    _flag("email_verified"),
    Column("personal_email", Text),
    Column("phone", Text),
    _flag("phone_verified"),
    Column("linkedin_url", Text),
    Column("title", Text),
    Column("company_name", Text),
    Column("industry", Text),
    Column("employee_count", BigInteger),
    Column("country", Text),
    Column("timezone", Text),
    Column("source", Text),
    _flag("is_new_role"),
    _time("role_started_at"),
    _flag("is_hiring"),
    _flag("recently_funded"),
    _time("funded_at"),
    _flag("is_competitor"),
    Column("status", Text, nullable=False),
    Column("als_score", Double),
    Column("als_tier", Text),
    Column("als_components", JsonText),
    Column("als_weights_used", JsonText),
    _time("scored_at"),
    _time("created_at", nullable=False),
    _time("converted_at"),
    _time("updated_at"),
    _time("deleted_at"),
    _change_id(),
    PrimaryKeyConstraint("client_id", "id"),
    Index(None, "change_id"),
    # Whether a client has a conversion at all is asked often, and must not scan its leads.
    _partial_index("leads_converted_idx", "client_id", "converted_at IS NOT NULL"),
    _id_length("id"),
    *_sqlite_checks(
        times=(
            "role_started_at",
            "funded_at",
            "scored_at",
            "created_at",
            "converted_at",
            "updated_at",
            "deleted_at",
        ),
        flags=(
            "email_verified",
            "phone_verified",
            "is_new_role",
            "is_hiring",
            "recently_funded",
            "is_competitor",
        ),
        numbers=("employee_count", "als_score"),
        json_columns=("als_components", "als_weights_used"),
    ),
)

activities = Table(
    "activities",
    metadata,
    Column("id", Text, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("lead_id", Text, nullable=False),
    Column("campaign_id", Text),
    Column("channel", Text),
    Column("action", Text, nullable=False),
    Column("touch_number", BigInteger),
    Column("sequence_id", Text),
    Column("content_snapshot", JsonText),
    Column("metadata", JsonText),
    _flag("led_to_booking"),
    _time("occurred_at", nullable=False),
    _time("created_at"),
    _change_id(),
    PrimaryKeyConstraint("client_id", "id"),
    # The lead must be the same client's; an activity means nothing without its lead.
    ForeignKeyConstraint(
        ["client_id", "lead_id"], ["leads.client_id", "leads.id"], ondelete="CASCADE"
    ),
    Index(None, "client_id", "lead_id"),
    Index(None, "change_id"),
    _partial_index("activities_booked_idx", "client_id", f"action = '{BOOKING_ACTION}'"),
    _id_length("id"),
    *_sqlite_checks(
        times=("occurred_at", "created_at"),
        flags=("led_to_booking",),
        numbers=("touch_number",),
        json_columns=("content_snapshot", "metadata"),
    ),
)


def _pattern_columns() -> list[Any]:
    """Columns and checks shared by the current patterns and their history."""
    return [
        Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
        Column("pattern_type", Text, nullable=False),
        Column("patterns", JsonText, nullable=False),
        Column("sample_size", BigInteger, nullable=False),
        Column("confidence", Double, nullable=False),
        _time("as_of", nullable=False),
        _time("computed_at", nullable=False),
        _time("valid_until", nullable=False),
        Column("code_version", Text, nullable=False),
        Column("input_fingerprint", Text, nullable=False),
        Column("run_id", Text, nullable=False),
        Column("settings", JsonText),
        _one_of("pattern_type", PatternType),
        CheckConstraint("confidence >= 0 AND confidence <= 1", name="confidence_range"),
        CheckConstraint("sample_size >= 0", name="sample_size_range"),
        *_sqlite_checks(
            times=("as_of", "computed_at", "valid_until"), json_columns=("patterns", "settings")
        ),
    ]


conversion_patterns = Table(
    "conversion_patterns",
    metadata,
    *_pattern_columns(),
    PrimaryKeyConstraint("client_id", "pattern_type"),
)

conversion_pattern_history = Table(
    "conversion_pattern_history",
    metadata,
    *_pattern_columns(),
    # The key is the computation: the same one twice is one row.
    PrimaryKeyConstraint("client_id", "pattern_type", "as_of", "code_version", "input_fingerprint"),
)

pattern_outcomes = Table(
    "pattern_outcomes",
    metadata,
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    Column("pattern_type", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=text("''")),
    Column("error", Text),
    _time("as_of", nullable=False),
    _time("computed_at", nullable=False),
    Column("code_version", Text, nullable=False),
    Column("input_fingerprint", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    PrimaryKeyConstraint("client_id", "pattern_type"),
    _one_of("pattern_type", PatternType),
    _one_of("outcome", OutcomeKind),
    *_sqlite_checks(times=("as_of", "computed_at")),
)

pattern_forecasts = Table(
    "pattern_forecasts",
    metadata,
    # One row per claim and the moment it was made; graded once, when its window has matured.
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    _time("made_as_of", nullable=False),
    # Hash of type, dimension and value: a value may be longer than an index entry.
    Column("cell", Text, nullable=False),
    Column("pattern_type", Text, nullable=False),
    Column("dimension", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("unit", Text, nullable=False),
    *(
        Column(name, Double, nullable=False)
        for name in (
            "rate", "rate_low", "rate_high", "strength", "lift", "lift_low", "lift_high",
            "base_rate", "delay_days",
        )
    ),
    Column("horizon_days", BigInteger, nullable=False),
    _time("due_as_of", nullable=False),
    Column("code_version", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    _time("graded_as_of"),
    Column("n", BigInteger),
    Column("k", BigInteger),
    Column("expected", Double),
    Column("variance", Double),
    Column("base_k", BigInteger),
    _flag("is_judged"),
    _flag("is_inside"),
    Column("brier", Double),
    Column("brier_base", Double),
    PrimaryKeyConstraint("client_id", "made_as_of", "cell"),
    _one_of("pattern_type", PatternType),
    CheckConstraint("graded_as_of IS NULL OR graded_as_of >= due_as_of", name="graded_when_due"),
    *_sqlite_checks(
        times=("made_as_of", "due_as_of"), flags=("is_judged", "is_inside")
    ),
)  # fmt: skip

learning_facts = Table(
    "learning_facts",
    metadata,
    # What the last refresh knew of a client besides its documents; for the check of health.
    Column("client_id", Text, ForeignKey("clients.id"), primary_key=True),
    _time("as_of", nullable=False),
    _time("computed_at", nullable=False),
    # Who lent: rows of pool_members. Null where nothing was borrowed.
    Column("pool_id", Text),
    Column("facts", JsonText, nullable=False),
    *_sqlite_checks(times=("as_of", "computed_at"), json_columns=("facts",)),
)

pool_members = Table(
    "pool_members",
    metadata,
    # Whose counts were in a pool. The id is the hash of its members: the same pool is kept once.
    Column("pool_id", Text, nullable=False),
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    PrimaryKeyConstraint("pool_id", "client_id"),
    Index(None, "client_id"),
)

row_deletions = Table(
    "row_deletions",
    metadata,
    # Latest deletion of each key, written by triggers only; bounded by the keys ever deleted.
    Column("table_name", Text, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("change_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("table_name", "client_id", "id"),
    Index(None, "table_name", "change_id"),
)

change_counter = Table(
    "change_counter",
    metadata,
    # One row. SQLite has no transaction ids: this counts them. PostgreSQL leaves it at zero.
    Column("only_row", BigInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    Column("epoch", Text, nullable=False),
    CheckConstraint("only_row = 1", name="only_row"),
)

health_findings = Table(
    "health_findings",
    metadata,
    Column("finding_id", Text, primary_key=True),
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    Column("pattern_type", Text),
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("numbers", JsonText, nullable=False),
    # Open while resolved_at is null. A finding that comes back is opened again in its row.
    _time("first_seen_at", nullable=False),
    _time("last_seen_at", nullable=False),
    _time("resolved_at"),
    _time("acknowledged_at"),
    # Last message that told it; null again once its resolution was told too.
    _time("told_at"),
    Index(None, "client_id"),
    _one_of("pattern_type", PatternType),
    _one_of("severity", Severity),
    *_sqlite_checks(
        times=("first_seen_at", "last_seen_at", "resolved_at", "acknowledged_at", "told_at"),
        json_columns=("numbers",),
    ),
)

alert_outbox = Table(
    "alert_outbox",
    metadata,
    # One row per message and channel, sent in the order of the number within a channel.
    Column("id", _ROW_NUMBER, primary_key=True),
    Column("message_key", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("client_id", Text),
    Column("kind", Text, nullable=False),
    Column("payload", JsonText, nullable=False),
    _time("created_at", nullable=False),
    Column("attempts", BigInteger, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    # Exactly one of the two ends a message's wait: taken by the channel, or refused for good.
    _time("sent_at"),
    _time("refused_at"),
    UniqueConstraint("channel", "message_key"),
    Index(
        "alert_outbox_waiting_idx",
        "channel",
        "id",
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    ),
    *_sqlite_checks(times=("created_at", "sent_at", "refused_at"), json_columns=("payload",)),
)

alert_channels = Table(
    "alert_channels",
    metadata,
    Column("channel", Text, primary_key=True),
    # Changes with the channel's address, which is a secret; a new address lifts a block.
    Column("address_hash", Text, nullable=False),
    Column("lease_owner", Text),
    _time("lease_until"),
    _time("next_attempt_at"),
    _time("last_sent_at"),
    Column("failures", BigInteger, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    _time("blocked_at"),
    *_sqlite_checks(times=("lease_until", "next_attempt_at", "last_sent_at", "blocked_at")),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    # When a piece of recurring work last came to its end; read by an outside monitor.
    Column("name", Text, primary_key=True),
    _time("succeeded_at", nullable=False),
    Column("detail", JsonText, nullable=False),
    *_sqlite_checks(times=("succeeded_at",), json_columns=("detail",)),
)

erasures = Table(
    "erasures",
    metadata,
    # What was asked to be erased, told by salted hashes alone: no id, no name.
    Column("id", _ROW_NUMBER, primary_key=True),
    Column("salt", Text, nullable=False),
    Column("client_hash", Text, nullable=False),
    # Null: the whole client.
    Column("lead_hash", Text),
    _time("asked_at", nullable=False),
    # Null while copies may be left; the same command again finishes it.
    _time("done_at"),
    # Set by an import that was told to take the lead again.
    _time("lifted_at"),
    # Filled and emptied within the deleting transaction: whose history the triggers let go.
    Column("open_client_id", Text),
    Index(None, "client_hash"),
    *_sqlite_checks(times=("asked_at", "done_at", "lifted_at")),
)

backfills = Table(
    "backfills",
    metadata,
    # One row per backfill, over all its attempts; at most one of a client is unfinished.
    Column("backfill_id", Text, primary_key=True),
    Column("client_id", Text, ForeignKey("clients.id"), nullable=False),
    Column("stages", JsonText, nullable=False),
    _time("as_of", nullable=False),
    Column("code_version", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    _time("started_at", nullable=False),
    _time("finished_at"),
    # Written in the transaction of the rows it speaks of.
    Column("progress", JsonText, nullable=False),
    Column("error", Text),
    # Who is at work, and until when to believe it without another sign of life.
    Column("lease_owner", Text),
    _time("lease_until"),
    Index(
        "backfills_unfinished_key",
        "client_id",
        unique=True,
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    ),
    *_sqlite_checks(
        times=("as_of", "started_at", "finished_at", "lease_until"),
        json_columns=("stages", "progress"),
    ),
)
