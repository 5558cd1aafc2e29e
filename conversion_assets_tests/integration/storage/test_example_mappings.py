"""The shipped mappings on the real data they were written for."""

import csv
import gzip
import json
import os
from datetime import datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select

from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.mapping import import_mapping

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("CONVERSION_TEST_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not DATA.is_dir() and not os.environ.get("CI"),
    reason="the data sets are not shipped; set CONVERSION_TEST_DATA",
)

LEAD, ACTIVITY = tables.leads.c, tables.activities.c


def load(engine, name, folder):
    return import_mapping(
        engine, ROOT / "examples" / f"{name}.yaml", DATA / name, quarantine_dir=folder
    )


@pytest.fixture(scope="module")
def home(sqlite_template, tmp_path_factory):
    """Both data sets as two clients of one database, and the reports."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "conversion.db").write_bytes(sqlite_template.read_bytes())
    engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
    return engine, {name: load(engine, name, folder / "q") for name in ("olist", "bpi2012")}


def query(home, *columns, where):
    with home[0].connect() as connection:
        return connection.execute(select(*columns).where(where)).all()


def counts(home, column, client, table=tables.leads):
    with home[0].connect() as connection:
        statement = select(column, func.count()).where(table.c.client_id == client)
        return dict(connection.execute(statement.group_by(column)).all())


def read(name):
    path = DATA / name
    content = path.read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    return list(csv.DictReader(text.splitlines()))


def test_olist_counts(home):
    report = home[1]["olist"]
    assert report.leads.accepted == 8_000 - 1
    assert report.reasons == {
        "leads": {"converted before created": 1},
        "activities": {"unknown lead": 1},
    }
    assert counts(home, LEAD.status, "olist") == {"converted": 842 - 1, "new": 7_158}
    assert counts(home, ACTIVITY.action, "olist", tables.activities) == {"form_submitted": 7_999}


def test_the_olist_deal_won_before_its_first_contact_is_in_quarantine(home):
    path = Path(home[1]["olist"].quarantine) / "leads.jsonl"
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["source"] == "olist_marketing_qualified_leads_dataset.csv"
    original = read(f"olist/{line['source']}")[line["row"] - 1]
    assert original["mql_id"] == line["record"]["id"] == "b91cf8812365f50ff4bda4bcd6206b05"
    assert original["first_contact_date"] == "2018-03-08"
    assert line["record"]["converted_at"] == "2018-03-06T19:38:00.000000+00:00"


def test_olist_days_are_local_days(home):
    zone = ZoneInfo("America/Sao_Paulo")
    rows = query(home, LEAD.id, LEAD.created_at, LEAD.converted_at, where=LEAD.client_id == "olist")
    contact = {
        row["mql_id"]: row["first_contact_date"]
        for row in read("olist/olist_marketing_qualified_leads_dataset.csv")
    }
    assert all(created.astimezone(zone).date().isoformat() == contact[i] for i, created, _ in rows)
    starts = {created.astimezone(zone).time() for _, created, _ in rows}
    assert starts == {time(0), time(1)}
    won = [converted.astimezone(zone) for _, _, converted in rows if converted]
    assert sum(at.time() == time(0) for at in won) == 61


def test_nothing_of_a_won_deal_but_its_time_is_stored(home):
    leaks = set()
    for row in read("olist/olist_closed_deals_dataset.csv"):
        leaks |= {v for k, v in row.items() if k not in ("mql_id", "won_date") and len(v) > 5}
    for row in read("olist/olist_sellers_dataset.csv"):
        leaks |= {row["seller_id"], row["seller_city"]}
    assert {"online_medium", "home_appliances", "reseller"} <= leaks
    stored = set()
    with home[0].connect() as connection:
        for table in (tables.leads, tables.activities):
            for row in connection.execute(select(table).where(table.c.client_id == "olist")):
                stored |= {str(value) for value in row}
    # That word is an origin too.
    assert leaks & stored == {"unknown"}
    assert not any(
        leak in text for leak in leaks if len(leak) == 32 for text in stored if "{" in text
    )


def test_what_is_known_of_a_lead_does_not_depend_on_its_being_won(home):
    outcome = {"status", "converted_at", "updated_at"}
    columns = [c for c in tables.leads.c if c.name not in outcome | {"id", "change_id"}]
    for client in ("olist", "bpi2012"):
        known = []
        for won in (LEAD.converted_at.is_not(None), LEAD.converted_at.is_(None)):
            rows = query(home, *columns, where=(LEAD.client_id == client) & won)
            shares = [
                sum(v is not None for v in column) / len(rows) for column in zip(*rows, strict=True)
            ]
            known.append(shares)
        assert known[0] == pytest.approx(known[1], abs=0.02)


def test_the_landing_page_is_content_and_no_touch(home):
    rows = query(
        home, ACTIVITY.lead_id, ACTIVITY.content_snapshot, where=ACTIVITY.client_id == "olist"
    )
    pages = {
        row["mql_id"]: row["landing_page_id"]
        for row in read("olist/olist_marketing_qualified_leads_dataset.csv")
    }
    assert all(json.loads(content) == {"template_id": pages[lead]} for lead, content in rows)


def test_bpi2012_counts(home):
    report = home[1]["bpi2012"]
    assert report.rejected == 0
    assert report.leads.accepted == 7_367
    assert counts(home, LEAD.status, "bpi2012") == {
        "converted": 2_246,
        "dead": 1_916,
        "not_interested": 2_806,
        "in_sequence": 399,
    }


def test_bpi2012_touches_are_counted_once(home):
    events = read("bpi2012/events.csv.gz")
    leads = {e["case_id"] for e in events if e["activity"] == "A_PREACCEPTED"}
    mine = [e for e in events if e["case_id"] in leads]
    calls = sum(e["activity"].startswith("W_") and e["lifecycle"] == "START" for e in mine)
    assert counts(home, ACTIVITY.action, "bpi2012", tables.activities) == {
        "voice_completed": calls,
        "mail_sent": sum(e["activity"] == "O_SENT" for e in mine),
        "offer_returned": sum(e["activity"] == "O_SENT_BACK" for e in mine),
    }
    assert calls == 68_428


def test_bpi2012_times_are_those_of_the_events(home):
    events = read("bpi2012/events.csv.gz")
    outcomes = {"A_ACTIVATED", "A_DECLINED", "A_CANCELLED"}
    ended = {
        e["case_id"]: datetime.fromisoformat(e["timestamp"])
        for e in events
        if e["activity"] in outcomes
    }
    registered = {
        row["case_id"]: datetime.fromisoformat(row["reg_date"])
        for row in read("bpi2012/cases.csv.gz")
    }
    rows = query(
        home,
        LEAD.id,
        LEAD.created_at,
        LEAD.converted_at,
        LEAD.updated_at,
        LEAD.status,
        where=LEAD.client_id == "bpi2012",
    )
    for number, created, converted, updated, status in rows:
        assert created == registered[number]
        assert updated == ended.get(number, created)
        assert converted == (updated if status == "converted" else None)


def test_bpi2012_touches_after_the_outcome_are_kept_as_such(home):
    joined = (ACTIVITY.client_id == LEAD.client_id) & (ACTIVITY.lead_id == LEAD.id)
    late = joined & (LEAD.client_id == "bpi2012") & (ACTIVITY.occurred_at >= LEAD.converted_at)
    rows = query(home, ACTIVITY.action, ACTIVITY.metadata, where=late)
    assert len(rows) == 49
    assert {action for action, _ in rows} == {"voice_completed"}


def test_agents_are_no_attribute_of_a_lead(home):
    agents = {e["resource"] for e in read("bpi2012/events.csv.gz")} - {""}
    rows = query(
        home, *(c for c in tables.leads.c if c.name != "id"), where=LEAD.client_id == "bpi2012"
    )
    assert not agents & {str(value) for row in rows for value in row}


@pytest.mark.slow
def test_the_same_on_both_databases_and_twice(engine, home, tmp_path):
    for name in ("olist", "bpi2012"):
        first = load(engine, name, tmp_path)
        again = load(engine, name, tmp_path)
        assert first.model_dump(exclude={"quarantine"}) == home[1][name].model_dump(
            exclude={"quarantine"}
        )
        assert again.leads.written == again.activities.written == again.clients.written == 0
        assert again.quarantine == first.quarantine
    for table in (tables.clients, tables.leads, tables.activities):
        columns = [
            c for c in table.c if not isinstance(c.type, tables.JsonText) and c.name != "change_id"
        ]
        statement = select(*columns)
        found = []
        for each in (engine, home[0]):
            with each.connect() as connection:
                found.append({tuple(row) for row in connection.execute(statement)})
        assert found[0] == found[1]
