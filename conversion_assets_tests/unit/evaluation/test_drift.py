from collections import Counter, defaultdict
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from scipy import stats

from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.population import select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets.evaluation.drift import (
    COUNTS,
    compare_base_rates,
    compare_rates,
    compare_shares,
    count_values,
    find_drift,
)
from conversion_assets_tests.unit.detectors.frames import AS_OF, build, draw_world, seeds


def draw(generator, clients, n, shares, rates, *, rows_per_lead=1):
    """Counts of many clients; all rows of a lead carry the same value."""
    leads = n // rows_per_lead
    picked = generator.multinomial(leads, shares, clients)
    k = generator.binomial(picked * rows_per_lead, rates)
    rows = [
        (
            f"c{c:05d}", "who", "d", f"v{v}", int(picked[c, v]) * rows_per_lead,
            int(picked[c, v]) * rows_per_lead, int(k[c, v]),
            int(picked[c, v]) * rows_per_lead**2, int(picked[c, v]) * rows_per_lead**2,
            leads * rows_per_lead**2,
        )
        for c in range(clients)
        for v in range(len(shares))
        if picked[c, v]
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=COUNTS, orient="row")


SHARES = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])
FLAT = np.full(6, 0.12)
CLIENTS = 1200


def find_alarms(compare, old, new):
    found = compare(old, new)
    assert found["client_id"].n_unique() == CLIENTS
    return found["is_drift"].mean()


@pytest.mark.parametrize("rows_per_lead", [1, 5])
@pytest.mark.parametrize("n", [100, 200, 500, 5000])
def test_unchanged_shares_raise_as_many_alarms_as_stated(n, rows_per_lead):
    generator = np.random.default_rng(n + rows_per_lead)
    old, new = (
        draw(generator, CLIENTS, n * rows_per_lead, SHARES, FLAT, rows_per_lead=rows_per_lead)
        for _ in range(2)
    )
    # Of 1,200 clients at 5 %, three standard errors are 1.9 points.
    assert find_alarms(compare_shares, old, new) == pytest.approx(0.05, abs=0.02)


def test_a_fixed_psi_threshold_would_cry_wolf_and_ours_does_not():
    generator = np.random.default_rng(1)
    old, new = (draw(generator, CLIENTS, 100, SHARES, FLAT) for _ in range(2))
    found = compare_shares(old, new)
    assert (found["change"] > 0.1).mean() > 0.3
    assert (found["change"] > found["change_threshold"]).mean() == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("n", [200, 500, 5000])
def test_a_common_change_of_conversion_is_no_drift_of_rates(n):
    generator = np.random.default_rng(n)
    old = draw(generator, CLIENTS, n, SHARES, FLAT)
    new = draw(generator, CLIENTS, n, SHARES, FLAT * 1.5)
    assert find_alarms(compare_rates, old, new) <= 0.07
    if n == 5000:
        assert find_alarms(compare_rates, old, new) >= 0.03


@pytest.mark.parametrize("n", [100, 200, 500, 5000])
def test_unchanged_base_rates_raise_as_many_alarms_as_stated(n):
    generator = np.random.default_rng(n)
    old, new = (draw(generator, CLIENTS, n, SHARES, FLAT) for _ in range(2))
    assert find_alarms(compare_base_rates, old, new) == pytest.approx(0.05, abs=0.025)


def test_real_changes_are_found():
    generator = np.random.default_rng(5)
    old = draw(generator, CLIENTS, 3000, SHARES, FLAT)
    moved = draw(generator, CLIENTS, 3000, np.roll(SHARES, 1), FLAT)
    assert find_alarms(compare_shares, old, moved) > 0.99
    swapped = draw(generator, CLIENTS, 3000, SHARES, np.array([0.12, 0.24, 0.12, 0.12, 0.06, 0.12]))
    assert find_alarms(compare_rates, old, swapped) > 0.95
    lower = draw(generator, CLIENTS, 3000, SHARES, FLAT * 0.7)
    assert find_alarms(compare_base_rates, old, lower) > 0.95


def test_shares_are_the_chi_square_of_scipy():
    generator = np.random.default_rng(2)
    old, new = (draw(generator, 20, 2000, SHARES, FLAT) for _ in range(2))
    found = compare_shares(old, new)
    for client, p in found.select("client_id", "p_value").iter_rows():
        table = [f.filter(pl.col("client_id") == client)["n"].to_numpy() for f in (old, new)]
        assert p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-6)


def test_the_budget_is_shared_among_dimensions():
    generator = np.random.default_rng(9)
    parts = [
        [draw(generator, CLIENTS, 500, SHARES, FLAT).with_columns(dimension=pl.lit(f"d{i}"))
         for i in range(8)]
        for _ in range(2)
    ]  # fmt: skip
    found = compare_shares(*(pl.concat(p) for p in parts))
    wolves = found.group_by("client_id").agg(pl.col("is_drift").any())["is_drift"].mean()
    assert wolves == pytest.approx(0.05, abs=0.02)


def test_edges():
    nothing = pl.DataFrame(schema=COUNTS)
    generator = np.random.default_rng(0)
    some = draw(generator, 2, 50, SHARES, FLAT)
    for compare in (compare_shares, compare_rates):
        assert compare(nothing, nothing).is_empty()
        for pair in ((some, nothing), (nothing, some)):
            found = compare(*pair)
            assert not found["is_drift"].any()
            assert found["p_value"].to_list() == [1.0, 1.0]
    assert compare_base_rates(some, nothing).is_empty()


CONFIG = LearningConfig(window_days=60)
OLD = (AS_OF - timedelta(days=60), AS_OF - timedelta(days=25))
NEW = (AS_OF - timedelta(days=20), AS_OF)
TIMES = {
    "leads": ("created_at", "converted_at", "maturity_days", "is_converted"),
    "touches": ("occurred_at", "lead_converted_at", "touch_maturity_days", "is_outcome"),
}


def select(features):
    ids = ["c0", "c1", "empty"]
    return select_population(
        features.leads, features.touches, ids, AS_OF, CONFIG, window=(OLD[0], NEW[1]),
        keeps_young=True,
    )  # fmt: skip


def list_values(population, dimension):
    """Rows that a dimension counts, with the values that they have."""
    frame = population.frame(dimension.rows).with_row_index("row")
    if dimension.value is not None:
        values = {dimension.name: dimension.value.cast(pl.String)}
    else:
        values = {
            f"{dimension.name}.{label}": pl.when(pl.col(column).fill_null(False))
            .then(pl.lit("true"))
            .otherwise(pl.lit("false"))
            for label, column in dimension.flags.items()
        }
    chosen = frame.filter(dimension.counts_in)
    for name, value in values.items():
        for row, label in chosen.select("row", value=value).iter_rows():
            if label is not None:
                yield name, row, label


def count_slowly(population, window):
    """Counts of a period, row by row: a dict of n, settled, k and the three sums."""
    sizes = defaultdict(Counter)
    sums = defaultdict(lambda: [0] * 6)
    for dimension in list_dimensions(population.touches.columns):
        if dimension.rows == "sequences":
            continue
        start, end, delay, outcome = TIMES[dimension.rows]
        rows = population.frame(dimension.rows).to_dicts()
        for name, number, label in list_values(population, dimension):
            row = rows[number]
            if not window[0] < row[start] <= window[1]:
                continue
            group = (population.client_ids[row["client"]], dimension.pattern.value, name)
            most = float("inf") if row[delay] is None else row[delay]
            in_time = row[outcome] and (row[end] - row[start]) / timedelta(days=1) <= most
            sizes[group][row["lead_id"], label] += 1
            found = sums[(*group, label)]
            found[0] += 1
            found[1] += row["is_settled"]
            found[2] += row["is_settled"] and in_time
    for group, counted in sizes.items():
        total = Counter()
        for (lead, _), m in counted.items():
            total[lead] += m
        for (lead, label), m in counted.items():
            sums[(*group, label)][3] += m * m
            sums[(*group, label)][4] += m * total[lead]
        for label in {label for _, label in counted}:
            sums[(*group, label)][5] = sum(m * m for m in total.values())
    return dict(sums)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_values_are_counted_as_a_loop_over_rows_would(seed):
    population = select(build(*draw_world(seed)))
    for window, found in zip((OLD, NEW), count_values(population, (OLD, NEW)), strict=True):
        assert found.schema == COUNTS
        counted = {tuple(row[:4]): list(row[4:]) for row in found.iter_rows()}
        assert len(counted) == found.height
        assert counted == count_slowly(population, window)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_shares_count_every_row_and_rates_the_rows_of_the_detectors(seed):
    features = build(*draw_world(seed))
    young = select(features)
    settled = select_population(
        features.leads, features.touches, ["c0", "c1", "empty"], AS_OF, CONFIG
    )
    for frame, key in (("leads", "lead_id"), ("touches", "activity_id")):
        assert set(young.frame(frame).filter("is_settled")[key]) == set(settled.frame(frame)[key])
    in_window = (pl.col("created_at") > OLD[0]) & (pl.col("created_at") <= AS_OF)
    assert young.leads.height == features.leads.filter(in_window).height
    assert young.sequences.is_empty()


def test_nobody_and_nothing():
    features = build(*draw_world(1))
    found = find_drift(
        features.leads, features.touches.clear(), [], old=OLD, new=NEW, as_of=AS_OF, config=CONFIG
    )
    assert found.is_empty()
    assert {"client_id", "question", "is_drift"} <= set(found.columns)
