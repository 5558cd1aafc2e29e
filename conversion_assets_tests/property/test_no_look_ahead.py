"""Nothing later than as_of may change an answer: every raw column, altered in the future.

Columns without a time of their own (title, industry, company, names, country, zone, size, source,
signals, tier and components without a scored_at, content, channel, sequence, led_to_booking) can
only be tested on rows that came later: whoever overwrites them in place on an older row has
overwritten what was known then. What is later than as_of and what is not:

- leads: the row is known from created_at; a conversion from converted_at; a failure from
  updated_at; a score from scored_at; a deletion from deleted_at.
- activities: the row is known from occurred_at (an import that comes late is still a fact of its
  time); created_at is when the row was written and says nothing.
"""

from datetime import timedelta

import polars as pl
import pytest

from conversion_assets.features.frames import ACTIVITY_COLUMNS, LEAD_COLUMNS
from conversion_assets.storage import tables
from conversion_assets.synthetic.generator import Agency, known_at
from conversion_assets_tests.property import worlds

CUT = worlds.CONFIG.as_of - timedelta(days=90)
MOMENT = pl.lit(CUT).cast(pl.Datetime("us", "UTC"))
LATER = CUT + timedelta(days=2)
CREATED_LATER = pl.col("created_at") > MOMENT
OCCURRED_LATER = pl.col("occurred_at") > MOMENT


@pytest.fixture(scope="module")
def agency() -> Agency:
    return worlds.make_agency()


def _learn(agency: Agency, leads=None, activities=None, clients=None):
    return worlds.write(
        worlds.detect_raw(
            agency.clients if clients is None else clients,
            agency.leads if leads is None else leads,
            agency.activities if activities is None else activities,
            CUT,
        )
    )


@pytest.fixture(scope="module")
def expected(agency) -> dict[str, str]:
    """What is learned at CUT from tables that know three more months."""
    written = _learn(agency)
    assert sum(not key.endswith("outcome") for key in written) >= 20
    assert agency.leads.filter(CREATED_LATER).height > 300
    assert agency.leads.filter(~CREATED_LATER, pl.col("converted_at") > MOMENT).height > 10
    assert agency.activities.filter(OCCURRED_LATER).height > 3000
    return written


def test_the_tables_as_they_stood_then(agency, expected):
    """All later facts taken back at once: later rows, conversions, losses, scores, bookings."""
    then = known_at(agency, CUT)
    assert _learn(then, then.leads, then.activities, then.clients) == expected


def test_later_rows_taken_out(agency, expected):
    leads = agency.leads.filter(~CREATED_LATER)
    activities = agency.activities.filter(~OCCURRED_LATER)
    assert _learn(agency, leads=leads) == expected
    assert _learn(agency, activities=activities) == expected


def test_later_rows_added(agency, expected):
    """Twins of all leads, created later, and of all activities, on the leads of then."""
    twins = agency.leads.with_columns(
        pl.col("id") + "-twin",
        *(pl.col(c) + timedelta(days=900) for c in ("created_at", "converted_at", "updated_at")),
    )
    assert _learn(agency, leads=pl.concat([agency.leads, twins])) == expected
    more = agency.activities.with_columns(
        pl.col("id") + "-twin", pl.col("occurred_at") + timedelta(days=900)
    )
    assert _learn(agency, activities=pl.concat([agency.activities, more])) == expected


def _alter(name: str, dtype: pl.DataType) -> pl.Expr:
    """Another value of the column's type; times move on, by a day."""
    column = pl.col(name)
    if dtype.is_temporal():
        return (column.fill_null(pl.lit(LATER)) + timedelta(days=1)).cast(dtype)
    if dtype == pl.Boolean:
        return ~column.fill_null(value=False)
    if dtype.is_numeric():
        return column.fill_null(0) * 3 + 7
    return pl.when(column.is_null()).then(pl.lit("altered")).otherwise(column.str.to_uppercase())


@pytest.mark.parametrize("name", [c for c in LEAD_COLUMNS if c not in ("id", "client_id")])
def test_leads_created_later_may_say_anything(agency, expected, name):
    dtype = agency.leads.schema[name]
    changed = pl.when(CREATED_LATER).then(_alter(name, dtype)).otherwise(pl.col(name)).alias(name)
    leads = agency.leads.with_columns(changed)
    assert not leads[name].equals(agency.leads[name])
    assert _learn(agency, leads=leads) == expected


@pytest.mark.parametrize(
    "name", [c for c in ACTIVITY_COLUMNS if c not in ("client_id", "lead_id", "id")]
)
def test_activities_that_happen_later_may_say_anything(agency, expected, name):
    if name in ("sequence_id", "metadata", "content_snapshot"):
        changed = pl.when(OCCURRED_LATER).then(pl.lit('{"cta": "book a call"}'))
    elif name == "action":
        # Every later activity becomes a booked meeting: all leads convert, later.
        changed = pl.when(OCCURRED_LATER).then(pl.lit("meeting_booked"))
    else:
        changed = pl.when(OCCURRED_LATER).then(_alter(name, agency.activities.schema[name]))
    activities = agency.activities.with_columns(changed.otherwise(pl.col(name)).alias(name))
    assert not activities[name].equals(agency.activities[name])
    assert _learn(agency, activities=activities) == expected


@pytest.mark.parametrize("name", ["id", "lead_id", "client_id"])
def test_keys_of_later_activities_may_say_anything(agency, expected, name):
    """Renamed, moved to another lead that was known then, or to another client."""
    first = agency.leads.filter(~CREATED_LATER).group_by("client_id", maintain_order=True).first()
    moved = {
        "id": pl.col("id") + "-renamed",
        "lead_id": pl.col("client_id").replace_strict(first["client_id"], first["id"]),
        "client_id": pl.lit(agency.clients["id"][0]),
    }[name]
    changed = pl.when(OCCURRED_LATER).then(moved).otherwise(pl.col(name)).alias(name)
    activities = agency.activities.with_columns(changed)
    assert not activities[name].equals(agency.activities[name])
    assert _learn(agency, activities=activities) == expected


@pytest.mark.parametrize("name", ["id", "client_id"])
def test_keys_of_later_leads_may_say_anything(agency, expected, name):
    moved = {"id": pl.col("id") + "-renamed", "client_id": pl.lit(agency.clients["id"][0])}[name]
    changed = pl.when(CREATED_LATER).then(moved).otherwise(pl.col(name)).alias(name)
    leads = agency.leads.with_columns(changed)
    assert not leads[name].equals(agency.leads[name])
    assert _learn(agency, leads=leads) == expected


def test_columns_that_no_feature_reads_may_say_anything_at_any_time(agency, expected):
    """Every other column of the tables, altered on all rows: nothing that is learned moves."""
    for table, read, argument in (
        (tables.leads, LEAD_COLUMNS, "leads"), (tables.activities, ACTIVITY_COLUMNS, "activities"),
    ):  # fmt: skip
        rows = getattr(agency, argument)
        others = [c.name for c in table.columns if c.name in rows.columns and c.name not in read]
        assert others
        altered = rows.with_columns(_alter(c, rows.schema[c]).alias(c) for c in others)
        assert not altered.equals(rows)
        assert _learn(agency, **{argument: altered}) == expected


def _known_lead() -> pl.Expr:
    return ~CREATED_LATER


CONVERTED_LATER = _known_lead() & (pl.col("converted_at") > MOMENT)
IS_OPEN = _known_lead() & pl.col("converted_at").is_null()


@pytest.mark.parametrize("days", [0, 1, 400])
def test_a_later_conversion_moved(agency, expected, days):
    moved = pl.when(CONVERTED_LATER).then(MOMENT + pl.duration(days=days, microseconds=1))
    leads = agency.leads.with_columns(converted_at=moved.otherwise("converted_at"))
    assert _learn(agency, leads=leads) == expected


def test_a_later_conversion_taken_back(agency, expected):
    leads = agency.leads.with_columns(
        converted_at=pl.when(~CONVERTED_LATER).then("converted_at"),
        status=pl.when(CONVERTED_LATER).then(pl.lit("in_sequence")).otherwise("status"),
    )
    assert _learn(agency, leads=leads) == expected


def test_every_open_lead_converts_later(agency, expected):
    leads = agency.leads.with_columns(
        converted_at=pl.when(IS_OPEN).then(pl.lit(LATER)).otherwise("converted_at"),
        status=pl.when(IS_OPEN).then(pl.lit("converted")).otherwise("status"),
        updated_at=pl.when(IS_OPEN).then(pl.lit(LATER)).otherwise("updated_at"),
    )
    assert _learn(agency, leads=leads) == expected


@pytest.mark.parametrize(
    "status", ["dead", "unsubscribed", "bounced", "not_interested", "nonsense"]
)
def test_every_open_lead_fails_later(agency, expected, status):
    leads = agency.leads.with_columns(
        status=pl.when(IS_OPEN).then(pl.lit(status)).otherwise("status"),
        updated_at=pl.when(IS_OPEN).then(pl.lit(LATER)).otherwise("updated_at"),
    )
    assert _learn(agency, leads=leads) == expected


def test_rows_written_later_about_then(agency, expected):
    """updated_at of leads and created_at of activities say when rows were written: no effect."""
    leads = agency.leads.with_columns(updated_at=pl.lit(LATER))
    activities = agency.activities.with_columns(created_at=pl.lit(LATER))
    assert _learn(agency, leads=leads, activities=activities) == expected


def test_booking_marks_of_later_conversions(agency, expected):
    """led_to_booking has no time; on a lead whose conversion came later it is not known yet."""
    later = agency.leads.filter(pl.col("converted_at").is_null() | CONVERTED_LATER)["id"]
    booked = agency.activities.filter(~OCCURRED_LATER, pl.col("action") == "meeting_booked")[
        "lead_id"
    ]
    is_later = pl.col("lead_id").is_in(later.implode()) & ~pl.col("lead_id").is_in(booked.implode())
    activities = agency.activities.with_columns(
        led_to_booking=pl.when(is_later).then(~pl.col("led_to_booking")).otherwise("led_to_booking")
    )
    assert not activities.equals(agency.activities)
    assert _learn(agency, activities=activities) == expected


def test_scores_given_later(agency, expected):
    """Leads scored only after as_of have no tier and no components yet."""
    is_even = pl.col("id").str.ends_with("2")
    known = agency.leads.with_columns(
        pl.when(~is_even).then(pl.col(c)).alias(c)
        for c in ("als_tier", "als_components", "als_score", "scored_at")
    )
    later = agency.leads.with_columns(
        scored_at=pl.when(is_even).then(pl.lit(LATER)).otherwise("scored_at")
    )
    assert _learn(agency, leads=known) == _learn(agency, leads=later)


@pytest.mark.parametrize("days_after", [-400, 2])
def test_a_deletion_takes_the_lead_out_whatever_as_of(agency, expected, days_after):
    """An exception by intent: a deleted person's data are used no more, not even for the past."""
    moment = CUT + timedelta(days=days_after)
    is_gone = pl.col("id").str.ends_with("3")
    deleted = agency.leads.with_columns(deleted_at=pl.when(is_gone).then(pl.lit(moment)))
    absent = agency.leads.filter(~is_gone)
    assert _learn(agency, leads=deleted) == _learn(agency, leads=absent) != expected


def test_a_booking_later_than_the_status_moves_nothing(agency, expected):
    """A meeting booked after as_of on a lead that converted before: still the earlier one."""
    done = agency.leads.filter(pl.col("converted_at") <= MOMENT)
    meetings = done.select(
        id=pl.col("id") + "-again", client_id="client_id", lead_id="id", channel=pl.lit("email"),
        action=pl.lit("meeting_booked"), occurred_at=pl.lit(LATER).cast(pl.Datetime("us", "UTC")),
    )  # fmt: skip
    activities = pl.concat([agency.activities, meetings], how="diagonal")
    assert _learn(agency, activities=activities) == expected


def test_what_happened_before_does_change_the_answer(agency, expected):
    """The tests above can fail: the same alterations before as_of are seen."""
    sooner = pl.when(IS_OPEN).then(pl.lit(CUT)).otherwise("converted_at")
    status = pl.when(IS_OPEN).then(pl.lit("converted")).otherwise("status")
    leads = agency.leads.with_columns(converted_at=sooner, status=status)
    assert _learn(agency, leads=leads) != expected
    late = pl.col("occurred_at") == agency.activities.filter(~OCCURRED_LATER)["occurred_at"].max()
    activities = agency.activities.filter(~late)
    assert activities.height < agency.activities.height
    assert _learn(agency, activities=activities.head(activities.height // 2)) != expected
