"""Contracts of the three tables: the one source of types, checks and documentation.

A contract says which columns a table has, which must be given, what stands in for a missing one,
and which rows are refused. Import, tests against the SQL tables and the column lists of
`docs/import.md` are all derived from here.

A rule is named as the reason a person reads, so a refused row needs no second vocabulary:
see `reason_of`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dataframely as dy
import polars as pl

from conversion_assets.domain.ideal_profile import read_profile
from conversion_assets.domain.terms import LeadStatus, SubscriptionStatus

EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
"""No outreach is recorded before it; zero epochs (1970) and 1900 are how exports write "none"."""
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
"""First instant that is no date any more; 2999 and 9999 are how exports write "never"."""
LONGEST_ID = 200
"""Characters of an id; two such ids still fit one entry of a database index."""
LARGEST_INTEGER = 2**31 - 1
"""Highest whole number of the SQL tables' 32-bit columns."""

Check = dict[str, Callable[[pl.Expr], pl.Expr]]


def _has_no_nul(column: pl.Expr) -> pl.Expr:
    # PostgreSQL text cannot hold it, and both databases must store the same rows.
    return ~column.str.contains("\x00", literal=True)


def _is_in_range(column: pl.Expr) -> pl.Expr:
    return column.is_between(pl.lit(EARLIEST), pl.lit(LATEST), closed="left")


def _is_zone(column: pl.Expr) -> pl.Expr:
    return column.map_batches(_are_zones, return_dtype=pl.Boolean)


def _are_zones(names: pl.Series) -> pl.Series:
    known = [name for name in names.unique().drop_nulls() if is_zone(name)]
    return names.is_in(pl.Series(known, dtype=pl.String).implode())


def is_zone(name: str) -> bool:
    """Say whether a name is an IANA time zone. Fixed offsets are not: they know no clock change.

    Example:
        >>> is_zone("Asia/Kathmandu"), is_zone("Mars/Base"), is_zone("+02:00")
        (True, False, False)
    """
    if not name[:1].isalpha():
        return False
    try:
        pl.select(pl.lit(EARLIEST).dt.convert_time_zone(name))
    except pl.exceptions.ComputeError:
        return False
    return True


def _is_profile(column: pl.Expr) -> pl.Expr:
    return column.map_batches(_are_profiles, return_dtype=pl.Boolean)


def _are_profiles(texts: pl.Series) -> pl.Series:
    usable = [text for text in texts.unique().drop_nulls() if read_profile(text)[1] is None]
    return texts.is_in(pl.Series(usable, dtype=pl.String).implode())


def _text(description: str, *, checks: Check | None = None, **metadata: Any) -> dy.String:
    return dy.String(
        nullable=not metadata.get("required", False),
        check={"nul character": _has_no_nul, **(checks or {})},
        description=description,
        metadata=metadata,
    )


def _id(description: str) -> dy.String:
    return _text(
        description,
        checks={"id too long": lambda c: c.str.len_chars() <= LONGEST_ID},
        required=True,
    )


def _time(description: str, **metadata: Any) -> dy.Datetime:
    return dy.Datetime(
        nullable=not metadata.get("required", False),
        time_zone="UTC",
        time_unit="us",
        check={"timestamp out of range": _is_in_range},
        description=description,
        metadata=metadata,
    )


def _flag(description: str, **metadata: Any) -> dy.Bool:
    return dy.Bool(
        nullable=not metadata.get("required", False), description=description, metadata=metadata
    )


def _count(description: str, *, checks: Check | None = None, **metadata: Any) -> dy.Int64:
    return dy.Int64(
        nullable=not metadata.get("required", False),
        check={"number out of range": lambda c: c.abs() <= LARGEST_INTEGER, **(checks or {})},
        description=description,
        metadata=metadata,
    )


def _json(description: str, *, checks: Check | None = None) -> dy.String:
    # In JSON the character is written as an escape; a backslash before it may itself be escaped.
    escaped = r"(?:^|[^\\])(?:\\\\)*\\u0000"
    return _text(
        description,
        checks={"nul character": lambda c: ~c.str.contains(escaped), **(checks or {})},
        json=True,
    )


class ClientRows(dy.Schema):
    """One row per client of the agency."""

    id = _id("The client's id.")
    name = _text("Name shown to people.", default="the id")
    timezone = _text(
        "IANA zone for leads that have none of their own.",
        checks={"unknown time zone": _is_zone},
    )
    subscription_status = _text(
        "One of: " + ", ".join(SubscriptionStatus) + ".",
        checks={"unknown subscription status": lambda c: c.is_in(list(SubscriptionStatus))},
        default="active",
    )
    is_paused = _flag("Learning is paused.", default="false")
    ideal_profile = _json(
        "Which companies the client looks for; see docs/lead-score.md.",
        checks={"unusable ideal profile": _is_profile},
    )
    als_learned_weights = _json("Learned weights of the lead score; later kept by the pipeline.")
    als_weights_updated_at = _time("When they were learned; later kept by the pipeline.")
    conversion_sample_count = _count(
        "Leads they were learned from; later kept by the pipeline.",
        checks={"negative sample count": lambda c: c >= 0},
    )
    pool_opt_in = _flag("Gives to and takes from the pool.", default="false")
    created_at = _time("When the client came; kept.", default="time of the first import")
    updated_at = _time("When the client's row last changed.")
    deleted_at = _time("When the client left; null while it is there.")


class LeadRows(dy.Schema):
    """One row per client and lead."""

    id = _id("The lead's id, unique within its client.")
    client_id = _id("The client it belongs to.")
    first_name = _text("First name; matched against the body of touches.")
    last_name = _text("Last name.")
    email = _text("E-mail address.")
    email_verified = _flag("The e-mail address was verified; null counts as not verified.")
    personal_email = _text("A private e-mail address.")
    phone = _text("Telephone number.")
    phone_verified = _flag("The telephone number was verified; null counts as not verified.")
    linkedin_url = _text("LinkedIn profile.")
    title = _text("Job title as written; normalised by the features.")
    company_name = _text("Company; matched against the body of touches.")
    industry = _text("Industry.")
    employee_count = _count(
        "Head count of the company.",
        checks={"negative employee count": lambda c: c >= 0},
    )
    country = _text("Country.")
    timezone = _text("IANA zone; the client's stands in.", checks={"unknown time zone": _is_zone})
    source = _text("Where the lead came from.")
    is_new_role = _flag("New in the role; null means not known.")
    role_started_at = _time("When the lead took up the role; tells more than is_new_role.")
    is_hiring = _flag("The company is hiring; null means not known.")
    recently_funded = _flag("The company was funded lately; null means not known.")
    funded_at = _time("When the company was last funded; tells more than recently_funded.")
    is_competitor = _flag("The company is a competitor of the client; null counts as no.")
    status = _text(
        "One of: " + ", ".join(LeadStatus) + ".",
        checks={"unknown status": lambda c: c.is_in(list(LeadStatus))},
        default="converted where converted_at is given, else new",
    )
    als_score = dy.Float64(
        allow_inf=True,  # Reading refuses it already, with a reason of its own.
        allow_nan=True,
        nullable=True,
        description="Lead score, 0 to 100.",
        metadata={},
    )
    als_tier = _text("Tier of the score: hot, warm, cool, cold or dead.")
    als_components = _json(
        "Points of data_quality, authority, company_fit, timing and risk, as an object."
    )
    als_weights_used = _json("Weights the score was computed with, as an object.")
    scored_at = _time("When the lead was scored.")
    created_at = _time("When the lead entered the funnel.", required=True)
    converted_at = _time("When the lead converted; null unless it did.")
    updated_at = _time(
        "When the lead last changed. For a failed lead: when it failed.",
        default="converted_at, else created_at",
    )
    deleted_at = _time("When the lead was deleted; null while it is there.")

    @dy.rule()
    def converted_before_created(cls) -> pl.Expr:  # noqa: N805 - dataframely passes the class
        """A lead cannot convert before it exists: one of the two times is wrong."""
        return pl.col("converted_at") >= pl.col("created_at")


class ActivityRows(dy.Schema):
    """One row per client and activity: outbound touches, replies, opens, meetings."""

    id = _id("The activity's id, unique within its client.")
    client_id = _id("The client it belongs to.")
    lead_id = _id("The lead it belongs to, of the same client.")
    campaign_id = _text("Campaign.")
    channel = _text(
        "email, sms, linkedin, voice, mail or any other name.",
        default="the channel of an outbound action, else null",
    )
    action = _text(
        "What happened. Outbound: email_sent, sms_sent, linkedin_sent, voice_completed, "
        "mail_sent. meeting_booked converts. Any other name is kept and is no touch.",
        required=True,
    )
    touch_number = _count(
        "Touch number of the sending system; the features count for themselves.",
        checks={"negative touch number": lambda c: c >= 0},
    )
    sequence_id = _text("Sequence the touch belongs to.")
    content_snapshot = _json("What was sent, as an object: subject, body, template_id and more.")
    metadata = _json("Anything else the sending system knows, as an object.")
    led_to_booking = _flag("The sending system says that this touch led to the booking.")
    occurred_at = _time("When it happened.", required=True)
    created_at = _time("When it was recorded.", default="occurred_at")


CONTRACTS: dict[str, type[dy.Schema]] = {
    "clients": ClientRows,
    "leads": LeadRows,
    "activities": ActivityRows,
}
"""Contract of each table, in the order in which rows must be stored."""

KEYS: dict[str, tuple[str, ...]] = {
    "clients": ("id",),
    "leads": ("client_id", "id"),
    "activities": ("client_id", "id"),
}
"""What identifies a row: ids of leads and activities are unique within their client only."""

KEPT_COLUMNS: tuple[str, ...] = (
    "created_at",
    "als_learned_weights",
    "als_weights_updated_at",
    "conversion_sample_count",
)
"""Client columns whose first value stays: what learning wrote is not undone by an import."""


def required_columns(table: str) -> list[str]:
    """Name the columns a file of this table must have.

    Example:
        >>> required_columns("leads")
        ['id', 'client_id', 'created_at']
    """
    return [
        name
        for name, column in CONTRACTS[table].columns().items()
        if (column.metadata or {}).get("required")
    ]


def json_columns(table: str) -> list[str]:
    """Name the columns of a table that hold a JSON object as text.

    Example:
        >>> json_columns("activities")
        ['content_snapshot', 'metadata']
    """
    return [
        name
        for name, column in CONTRACTS[table].columns().items()
        if (column.metadata or {}).get("json")
    ]


def reason_of(rule: str) -> str:
    """Translate the name of a contract's rule into the reason a person reads.

    Example:
        >>> reason_of("created_at|nullability")
        'missing created_at'
        >>> reason_of("status|check__unknown status")
        'unknown status'
        >>> reason_of("converted_before_created")
        'converted before created'
    """
    column, bar, check = rule.partition("|")
    if not bar:
        return rule.replace("_", " ")
    if check == "nullability":
        return f"missing {column}"
    return check.removeprefix("check__")


def document_contracts() -> str:
    """Write every contract as Markdown tables: column, type, whether it must be given, meaning.

    Example:
        >>> document_contracts().splitlines()[0]
        '### clients'
    """
    return "\n\n".join(_document(table) for table in CONTRACTS) + "\n"


def _document(table: str) -> str:
    contract = CONTRACTS[table]
    lines = [
        f"### {table}",
        "",
        f"{(contract.__doc__ or '').strip()} Key: {', '.join(KEYS[table])}.",
        "",
        "| column | type | when missing | meaning |",
        "|---|---|---|---|",
    ]
    for name, column in contract.columns().items():
        metadata = column.metadata or {}
        missing = "**required**" if metadata.get("required") else metadata.get("default", "null")
        kind = "JSON object" if metadata.get("json") else _KINDS[type(column)]
        lines.append(f"| {name} | {kind} | {missing} | {column.description} |")
    return "\n".join(lines)


_KINDS: dict[type[dy.Column], str] = {
    dy.String: "text",
    dy.Datetime: "time with zone",
    dy.Bool: "true or false",
    dy.Int64: "whole number",
    dy.Float64: "number",
}
