"""Clients at the edges among others, on the rows of both generators."""

from functools import lru_cache

import polars as pl
import pytest

from conversion_assets import learn_patterns
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.notebook import LearnedPatterns
from conversion_assets_tests.recovery.worlds import WORLDS, YEAR_END, generate_null

LEADS = 400
EDGES = ("usual", "empty", "one lead", "none converts", "all convert", "nulls", "a new channel")
ATTRIBUTES = ("title", "source", "country", "als_components", "timezone")


@lru_cache(maxsize=len(WORLDS))
def _make_rows(world: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Clients, leads and activities; each client but the first is at one of the edges."""
    agency = generate_null(world, len(EDGES), LEADS, 3, days=300)
    names = dict(zip(agency.clients["id"], EDGES, strict=True))
    clients = agency.clients.with_columns(
        pl.col("id").replace_strict(names), pool_opt_in=pl.lit(value=False)
    )
    leads, activities = (
        rows.with_columns(pl.col("client_id").replace_strict(names))
        for rows in (agency.leads, agency.activities)
    )
    owner = pl.col("client_id")
    first = leads.filter(owner == "one lead")["id"][0]
    leads = leads.filter(owner != "empty", (owner != "one lead") | (pl.col("id") == first))
    none, everyone = owner == "none converts", owner == "all convert"
    seen = activities.group_by("lead_id").agg(last=pl.col("occurred_at").max())
    leads = leads.join(
        seen, left_on="id", right_on="lead_id", how="left", maintain_order="left"
    ).with_columns(
        converted_at=pl.when(everyone)
        .then(pl.coalesce("converted_at", "last", "created_at"))
        .when(~none)
        .then("converted_at"),
        status=pl.when(everyone)
        .then(pl.lit("converted"))
        .when(none)
        .then(pl.lit("in_sequence"))
        .otherwise("status"),
        **{
            name: pl.when(owner != "nulls").then(name)
            for name in ATTRIBUTES
            if name in leads.columns
        },
    )
    activities = activities.filter(
        # A booked meeting is a conversion too.
        (pl.col("action") != "meeting_booked") | ~none,
    ).with_columns(
        channel=pl.when(owner == "a new channel").then(pl.lit("pigeon")).otherwise("channel"),
        content_snapshot=pl.when(owner != "nulls").then("content_snapshot"),
    )
    known = activities.join(leads, left_on="lead_id", right_on="id", how="semi")
    return clients, leads.drop("last"), known


@lru_cache(maxsize=len(WORLDS))
def _learn(world: str) -> LearnedPatterns:
    clients, leads, activities = _make_rows(world)
    return learn_patterns(leads, activities, clients, as_of=YEAR_END)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("client", EDGES)
def test_a_document_or_a_stated_outcome(world, client):
    outcomes = {o.pattern_type: o for o in _learn(world).outcomes if o.client_id == client}
    assert set(outcomes) == set(PatternType)
    kinds = {o.outcome for o in outcomes.values()}
    if client in ("empty", "one lead", "none converts", "all convert"):
        assert kinds == {OutcomeKind.NOT_ENOUGH_DATA}
        assert all(o.reason for o in outcomes.values())
        assert _learn(world)[client] == {}
        return
    assert OutcomeKind.FAILED not in kinds, outcomes
    missing = {kind for kind, o in outcomes.items() if o.outcome == OutcomeKind.NOT_ENOUGH_DATA}
    # Without content there is no WHAT; local time may still be the client's own zone's.
    assert missing == ({PatternType.WHAT} if client == "nulls" else set())
    assert set(_learn(world)[client]) == set(PatternType) - missing
    if client == "a new channel":
        found = _learn(world)[client][PatternType.HOW].first_touch
        assert [e.value for e in found] == ["pigeon"]


@pytest.mark.parametrize("world", WORLDS)
def test_clients_at_the_edges_move_nobody_else(world):
    clients, leads, activities = _make_rows(world)
    alone = learn_patterns(
        leads.filter(client_id="usual"),
        activities.filter(client_id="usual"),
        clients.filter(id="usual"),
        as_of=YEAR_END,
    )
    assert alone["usual"] == _learn(world)["usual"]
