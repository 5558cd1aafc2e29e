"""The rows that count, against loops over rows that read the rule literally."""

import math
from collections import defaultdict
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given, settings

from conversion_assets.detectors.how import discover_sequences
from conversion_assets.detectors.population import SEQUENCE_SEPARATOR, select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import NoteKind
from conversion_assets_tests.unit.detectors.frames import AS_OF, build, draw_world, seeds

pytestmark = pytest.mark.slow  # hundreds of worlds, each read row by row

CONFIG = LearningConfig(window_days=60)
START = AS_OF - timedelta(days=CONFIG.window_days)
IDS = ["c0", "c1", "empty"]


def _days(delta):
    return delta / timedelta(days=1)


def _quantile(delays):
    """The observed delay that at least 90 % of the delays do not exceed; None of no delays."""
    delays = sorted(max(d, 0.0) for d in delays)
    return delays[math.ceil(0.9 * (len(delays) - 1) - 1e-9)] if delays else None


def _slow(features):
    leads = [r for r in features.leads.to_dicts() if r["created_at"] <= AS_OF]
    touches = [r for r in features.touches.to_dicts() if r["occurred_at"] <= AS_OF]
    for lead in leads:
        at = lead["converted_at"]
        lead["is_converted"] = at is not None and at <= AS_OF
    lead_delays, touch_delays = defaultdict(list), defaultdict(list)
    for lead in leads:
        if lead["is_converted"] and lead["created_at"] > START:
            lead_delays[lead["client_id"]].append(_days(lead["converted_at"] - lead["created_at"]))
    by_lead = defaultdict(list)
    for touch in touches:
        by_lead[touch["lead_id"]].append(touch)
    counted = []
    for path in by_lead.values():
        path.sort(key=lambda t: (t["occurred_at"], t["activity_id"]))
        converted_at = path[0]["lead_converted_at"]
        known = converted_at if converted_at is not None and converted_at <= AS_OF else None
        before = [t for t in path if known is None or t["occurred_at"] <= known]
        for touch in path:
            touch["is_outcome"] = known is not None and before != [] and touch is before[-1]
            touch["is_at_risk"] = touch in before
            if touch["is_outcome"] and touch["occurred_at"] > START:
                touch_delays[touch["client_id"]].append(_days(known - touch["occurred_at"]))
        counted += [t for t in before if t["occurred_at"] > START]
    mature = [
        lead
        for lead in leads
        if lead["created_at"] > START
        and _days(AS_OF - lead["created_at"]) >= (_quantile(lead_delays[lead["client_id"]]) or 0.0)
    ]
    settled = [
        t
        for t in counted
        if _days(AS_OF - t["occurred_at"]) >= (_quantile(touch_delays[t["client_id"]]) or 0.0)
    ]
    return mature, settled, by_lead


def _select(features, ids=IDS):
    return select_population(features.leads, features.touches, ids, AS_OF, CONFIG)


@settings(max_examples=120, deadline=None)
@given(seeds)
def test_leads_and_touches_are_those_of_the_rule(seed):
    features = build(*draw_world(seed))
    mature, settled, by_lead = _slow(features)
    found = _select(features)
    assert {(r["lead_id"], r["is_converted"]) for r in mature} == set(
        found.leads.select("lead_id", "is_converted").iter_rows()
    )
    assert {(t["activity_id"], t["is_outcome"]) for t in settled} == set(
        found.touches.select("activity_id", "is_outcome").iter_rows()
    )
    assert found.leads["lead_id"].is_unique().all()
    assert found.touches["activity_id"].is_unique().all()
    for lead, channel in found.leads.select("lead_id", "channel").iter_rows():
        path = by_lead[lead]
        first = path[0]["channel"] if path and path[0]["is_at_risk"] else None
        assert channel == first, lead
    sizes = {c: [r for r in mature if r["client_id"] == c] for c in IDS}
    assert found.summary.select("n", "k").rows() == [
        (len(sizes[c]), sum(r["is_converted"] for r in sizes[c])) for c in found.client_ids
    ]
    assert sorted(found.client_ids) == sorted(IDS)


@settings(max_examples=120, deadline=None)
@given(seeds)
def test_sequences_are_the_prefixes_reached_before_conversion(seed):
    features = build(*draw_world(seed))
    mature, _, by_lead = _slow(features)
    expected = set()
    for client in IDS:
        own = [r for r in mature if r["client_id"] == client]
        if not own:
            continue
        middle = sorted(r["created_at"] for r in own)[len(own) // 2]
        for lead in own:
            path = [t["channel"] for t in by_lead[lead["lead_id"]] if t["is_at_risk"]]
            for length in range(2, min(len(path), 6) + 1):
                expected.add(
                    (lead["lead_id"], length, SEQUENCE_SEPARATOR.join(path[:length]),
                     lead["is_converted"], lead["created_at"] >= middle)
                )  # fmt: skip
    found = _select(features).sequences
    columns = ["lead_id", "length", "prefix", "is_outcome", "is_later_half"]
    assert set(found.select(columns).iter_rows()) == expected
    assert found.height == len(expected)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_touch_is_counted_or_noted(seed):
    features = build(*draw_world(seed))
    found = _select(features)
    left_out = found.notes.filter(
        pl.col("kind").is_in([NoteKind.TOUCH_AFTER_CONVERSION, NoteKind.YOUNG_TOUCH])
    )["rows"].sum()
    in_window = features.touches.filter(
        (pl.col("occurred_at") > START) & (pl.col("occurred_at") <= AS_OF)
    ).height
    assert found.touches.height + left_out == in_window
    assert (
        found.notes.filter(pl.col("kind") != NoteKind.YOUNG_LEAD)["of"]
        .unique()
        .is_in(
            features.touches.filter(
                (pl.col("occurred_at") > START) & (pl.col("occurred_at") <= AS_OF)
            )
            .group_by("client_id")
            .len()["len"]
            .implode()
        )
        .all()
    )
    young = found.notes.filter(pl.col("kind") == NoteKind.YOUNG_LEAD)["rows"].sum()
    assert found.leads.height + young == found.followed.height


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_lead_is_followed_to_its_conversion_or_until_now(seed):
    features = build(*draw_world(seed))
    known = {r["lead_id"]: r for r in features.leads.to_dicts()}
    for lead, days, converted in (
        _select(features).followed.select("lead_id", "duration_days", "is_converted").iter_rows()
    ):
        row = known[lead]
        end = row["converted_at"] if converted else AS_OF
        assert days == pytest.approx(_days(end - row["created_at"]), abs=1e-9)
        assert row["created_at"] > START


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_a_client_does_not_move_with_others(seed):
    features = build(*draw_world(seed))
    together = discover_sequences(_select(features))
    for client in IDS:
        alone = discover_sequences(_select(features, [client]))
        number = together.client_ids.index(client)
        for name in ("leads", "touches", "sequences", "followed", "summary", "notes"):
            mine = getattr(together, name).filter(pl.col("client") == number)
            assert mine.drop("client").equals(getattr(alone, name).drop("client")), name


def test_borders_of_the_window():
    """Created or touched exactly at the start: out; exactly at as_of: in."""
    at = {"at start": START, "just inside": START + timedelta(microseconds=1), "now": AS_OF,
          "later": AS_OF + timedelta(microseconds=1)}  # fmt: skip
    leads = [{"id": n, "client_id": "c0", "created_at": t, "status": "new"} for n, t in at.items()]
    old = {"id": "old", "client_id": "c0", "created_at": START - timedelta(days=9), "status": "new"}
    touches = [
        {"id": n, "client_id": "c0", "lead_id": "old", "channel": "email", "action": "email_sent",
         "occurred_at": t}
        for n, t in at.items()
    ]  # fmt: skip
    found = _select(build([*leads, old], touches))
    assert found.leads["lead_id"].to_list() == ["just inside", "now"]
    assert found.touches["activity_id"].to_list() == ["just inside", "now"]


def test_a_touch_after_conversion_gives_no_first_channel():
    created = AS_OF - timedelta(days=30)
    lead = {"id": "l", "client_id": "c0", "created_at": created, "status": "converted",
            "converted_at": created + timedelta(days=1)}  # fmt: skip
    touch = {"id": "t", "client_id": "c0", "lead_id": "l", "channel": "email",
             "action": "email_sent", "occurred_at": created + timedelta(days=2)}  # fmt: skip
    found = _select(build([lead], [touch]))
    assert found.leads.select("is_converted", "channel").rows() == [(True, None)]
    assert found.touches.is_empty()


@pytest.mark.parametrize("days_later", [None, 1])
def test_a_booking_mark_without_a_known_conversion_is_no_contradiction(days_later):
    """The mark has no time of its own: it may be of a conversion that as_of does not know."""
    created = AS_OF - timedelta(days=30)
    converted = None if days_later is None else AS_OF + timedelta(days=days_later)
    lead = {"id": "l", "client_id": "c0", "created_at": created, "converted_at": converted,
            "status": "new" if converted is None else "converted"}  # fmt: skip
    touches = [
        {"id": f"t{n}", "client_id": "c0", "lead_id": "l", "channel": "email", "timezone": "UTC",
         "action": "email_sent", "occurred_at": created + timedelta(days=n), "led_to_booking": m}
        for n, m in ((1, True), (2, False))
    ]  # fmt: skip
    for touch in touches:
        touch.pop("timezone")
    lead["timezone"] = "UTC"
    assert _select(build([lead], touches)).notes.is_empty()
