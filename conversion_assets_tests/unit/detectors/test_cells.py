"""Expected counts and their moments against loops over rows and against statsmodels."""

from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import StratifiedTable

from conversion_assets.detectors.cells import (
    ENDS,
    MOST_VALUES,
    Dimension,
    count_cells,
    count_dimension,
)
from conversion_assets.detectors.population import Population
from conversion_assets.detectors.reversals import STRATA, count_strata
from conversion_assets.domain.terms import PatternType
from conversion_assets_tests.unit.detectors.frames import AS_OF

ADJUSTED = Dimension(
    PatternType.WHAT, "d", "touches", value=pl.col("kind"), strata=("channel", "touch_stratum"),
    counts_in=pl.col("counts"),
)  # fmt: skip
FLAGGED = Dimension(
    PatternType.WHAT, "f", "touches", flags={"one": "flag_1", "two": "flag_2"},
    strata=("channel",), counts_in=pl.col("counts"), checked=("touch_stratum", "channel"),
)  # fmt: skip
CHECKED = Dimension(
    PatternType.WHAT, "c", "touches", value=pl.col("kind"), checked=("touch_stratum", "channel"),
)  # fmt: skip
TIERED = Dimension(
    PatternType.HOW, "t", "touches", value=pl.concat_str("channel", "kind", separator="|"),
    counts_in=pl.col("channel").is_not_null(), within=("channel",), checked=("touch_stratum",),
)  # fmt: skip
PLAIN = Dimension(PatternType.WHO, "p", "leads", value=pl.col("kind"))
SCHEMA = {
    "client": pl.Int32, "kind": pl.String, "channel": pl.String, "touch_stratum": pl.Int32,
    "is_outcome": pl.Boolean, "counts": pl.Boolean, "flag_1": pl.Boolean, "flag_2": pl.Boolean,
}  # fmt: skip

rows_of_touches = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from([None, "x", "y", "z"]),
        st.sampled_from([None, "email", "voice"]), st.integers(1, 2), st.booleans(),
        st.sampled_from([True, True, True, False]), st.booleans(), st.booleans(),
    ),
    max_size=60,
)  # fmt: skip


def _population(rows) -> Population:
    touches = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    leads = touches.rename({"is_outcome": "is_converted"})
    none = pl.DataFrame()
    return Population(["a", "b", "c"], AS_OF, leads, touches, none, none, none, none)


def _slow(rows, labels_of, strata_of, counts_in):
    """Per client and label: n, k, the exact null mean, variance and third moment, and the ends."""
    strata = defaultdict(list)
    for row in rows:
        if counts_in(row):
            strata[row[0], strata_of(row)].append(row)
    found = defaultdict(lambda: [0, 0, *[0.0] * 7])
    for (client, _), members in strata.items():
        total, converted = len(members), sum(m[4] for m in members)
        for label in {label for m in members for label in labels_of(m)}:
            own = [m for m in members if label in labels_of(m)]
            null = stats.hypergeom(total, converted, len(own))
            support = np.arange(len(own) + 1)
            mass = null.pmf(support)
            mean = (mass * support).sum()
            cell = found[client, label]
            cell[0] += len(own)
            cell[1] += sum(m[4] for m in own)
            cell[2] += mean
            cell[3] += (mass * (support - mean) ** 2).sum()
            cell[4] += (mass * (support - mean) ** 3).sum()
            possible = support[mass > 0]
            for place, end in ((5, possible[0]), (6, possible[-1])):
                cell[place] += end
                cell[place + 2] += np.log(mass[end])
    return found


def _compare(cells, slow):
    assert set(cells.select("client", "value").iter_rows()) == set(slow)
    for client, value, n, k, *moments in cells.select(
        "client", "value", "n", "k", "expected", "variance", "third", *ENDS
    ).iter_rows():
        want = slow[client, value]
        assert [n, k] == want[:2]
        # Sums of at most a hundred masses of the reference.
        assert moments == pytest.approx(want[2:], abs=1e-9)


@settings(max_examples=120, deadline=None)
@given(rows_of_touches)
def test_a_value_against_loops(rows):
    cells = count_dimension(_population(rows), ADJUSTED)
    slow = _slow(
        rows, lambda r: [] if r[1] is None else [r[1]], lambda r: (r[2], r[3]), lambda r: r[5]
    )
    _compare(cells, slow)


@settings(max_examples=120, deadline=None)
@given(rows_of_touches)
def test_overlapping_flags_against_loops(rows):
    cells = count_dimension(_population(rows), FLAGGED)
    labels = [("one", 6), ("two", 7)]
    slow = _slow(rows, lambda r: [v for v, c in labels if r[c]], lambda r: r[2], lambda r: r[5])
    _compare(cells, slow)


@settings(max_examples=80, deadline=None)
@given(rows_of_touches)
def test_the_base_is_every_row_that_counts(rows):
    population = _population(rows)
    for dimension, counts_in in ((ADJUSTED, True), (PLAIN, False)):
        for client, base_n, base_k in (
            count_dimension(population, dimension).select("client", "base_n", "base_k").iter_rows()
        ):
            own = [r for r in rows if r[0] == client and (r[5] or not counts_in)]
            assert (base_n, base_k) == (len(own), sum(r[4] for r in own))


@settings(max_examples=80, deadline=None)
@given(rows_of_touches)
def test_values_that_share_out_the_rows_share_out_the_conversions(rows):
    """Without missing values what is expected adds up to what was seen, in every client."""
    whole = [(r[0], r[1] or "x", *r[2:]) for r in rows]
    cells = (
        count_dimension(_population(whole), ADJUSTED)
        .group_by("client")
        .agg(pl.col("expected", "k").sum())
    )
    for _, expected, k in cells.iter_rows():
        assert expected == pytest.approx(k, abs=1e-9)


def test_mantel_and_haenszel():
    """The same statistic as statsmodels: (k - expected) squared over the variance."""
    rng = np.random.default_rng(5)
    rows, tables = [], []
    for stratum, (size, rate) in enumerate([(400, 0.1), (250, 0.3), (60, 0.05)], start=1):
        inside = rng.random(size) < 0.3
        hit = rng.random(size) < rate * np.where(inside, 1.4, 1.0)
        table = [[(inside & hit).sum(), (inside & ~hit).sum()],
                 [(~inside & hit).sum(), (~inside & ~hit).sum()]]  # fmt: skip
        tables.append(np.array(table))
        rows += [
            (0, "in" if i else "out", "email", stratum, bool(h), True, False, False)
            for i, h in zip(inside, hit, strict=True)
        ]
    cell = (
        count_dimension(_population(rows), ADJUSTED)
        .filter(pl.col("value") == "in")
        .row(0, named=True)
    )
    theirs = StratifiedTable(tables).test_null_odds(correction=False)
    ours = (cell["k"] - cell["expected"]) ** 2 / cell["variance"]
    assert ours == pytest.approx(theirs.statistic, rel=1e-9)


def test_a_stratum_of_one_or_two_rows_has_no_freedom_or_no_skew():
    rows = [(0, "x", "email", 1, True, True, False, False)]
    lone = count_dimension(_population(rows), ADJUSTED).row(0, named=True)
    assert (lone["expected"], lone["variance"], lone["third"]) == (1.0, 0.0, 0.0)
    pair = [*rows, (0, "y", "email", 1, False, True, False, False)]
    first = count_dimension(_population(pair), ADJUSTED).row(0, named=True)
    assert (first["expected"], first["variance"], first["third"]) == (0.5, 0.25, 0.0)


def test_nothing_to_count():
    for dimension in (ADJUSTED, FLAGGED, PLAIN):
        cells = count_dimension(_population([]), dimension)
        assert cells.is_empty()
        assert cells.schema["expected"] == cells.schema["variance"] == pl.Float64


@settings(max_examples=60, deadline=None)
@given(rows_of_touches)
def test_a_client_does_not_move_with_others(rows):
    together = count_dimension(_population(rows), ADJUSTED)
    for client in range(3):
        alone = count_dimension(_population([r for r in rows if r[0] == client]), ADJUSTED)
        assert alone.equals(together.filter(pl.col("client") == client))


def _draw_some(counted, data):
    """Some of the cells, numbered with gaps."""
    size = counted.height
    is_chosen = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return counted.filter(pl.Series(is_chosen, dtype=pl.Boolean)).with_columns(
        cell=pl.int_range(pl.len(), dtype=pl.Int64) * 3
    )


@settings(max_examples=120, deadline=None)
@given(rows_of_touches, st.data())
def test_strata_of_chosen_cells_are_those_of_a_count_by_each_variable(rows, data):
    population = _population(rows)
    for dimension in (CHECKED, FLAGGED, TIERED):
        counted = count_dimension(population, dimension)
        promising = _draw_some(counted, data)
        found = count_strata(population, [dimension], promising).counts
        every = [
            count_cells(population, dimension, [*dimension.within, variable])
            .sort("client", "value", variable)
            .join(promising.select("cell", "client", "value"), on=["client", "value"])
            .select(
                "cell",
                variable=pl.lit(variable),
                stratum=pl.col(variable).cast(pl.String).fill_null("unknown"),
                n="n",
                k="k",
                base_n="base_n",
                base_k="base_k",
            )
            for variable in dimension.checked
        ]
        want = pl.concat([pl.DataFrame(schema=STRATA), *every])
        assert found.equals(want.sort("cell", "variable", maintain_order=True))


HELD_BY = (
    (FLAGGED, lambda r: {v for v, c in (("one", 6), ("two", 7)) if r[c]}, lambda r: r[5],
     {"touch_stratum": lambda r: (r[2], r[3])}),
    (CHECKED, lambda r: {r[1]} - {None}, lambda r: True,
     {"channel": lambda r: r[2], "touch_stratum": lambda r: r[3]}),
    (TIERED, lambda r: {f"{r[2]}|{r[1]}"} if r[1] else set(), lambda r: r[2] is not None,
     {"touch_stratum": lambda r: (r[2], r[3])}),
)  # fmt: skip
"""Dimension, labels of a row, rows that count, and strata by the variable that is held as well."""


@settings(max_examples=120, deadline=None)
@given(rows_of_touches, st.data())
def test_one_variable_more_is_held_fixed_exactly(rows, data):
    """Beside what the dimension holds, and only where it does not hold that variable already."""
    population = _population(rows)
    for dimension, labels_of, counts_in, strata_by in HELD_BY:
        counted = count_dimension(population, dimension)
        promising = _draw_some(counted, data)
        held = count_strata(population, [dimension], promising).held
        assert held.select("cell", "variable").rows() == [
            (cell, variable) for cell in promising["cell"] for variable in strata_by
        ]
        named = held.join(promising.select("cell", "client", "value"), on="cell")
        for variable, strata_of in strata_by.items():
            slow = _slow(rows, labels_of, strata_of, counts_in)
            for client, value, k, *moments in (
                named.filter(variable=variable)
                .select("client", "value", "k", "expected", "variance", "third")
                .iter_rows()
            ):
                want = slow[client, value]
                assert k == want[1]
                assert moments == pytest.approx(want[2:5], abs=1e-9)


def test_frequent_values_come_first_and_ties_by_name():
    names = ["b", "a", "c", "c"]
    rows = [(0, v, "email", 1, False, True, False, False) for v in names]
    ranked = count_dimension(_population(rows), PLAIN).sort("frequency_rank")
    assert ranked["value"].to_list() == ["c", "a", "b"]
    assert MOST_VALUES >= 24
