"""What turns round within strata, what fades there, and what is left out when they are compared."""

from datetime import date

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conversion_assets.detectors.population import _month
from conversion_assets.detectors.reversals import (
    HELD,
    MOST_AGAINST_MEANS,
    STRATA,
    _name_strata,
    find_explanations,
    find_reversals,
)
from conversion_assets.domain.config import LearningConfig
from conversion_assets.stats.intervals import compute_probability_greater

counts = st.one_of(st.integers(0, 5), st.integers(0, 3_000))


@settings(max_examples=400, deadline=None)
@given(counts, counts, counts, counts)
def test_a_rate_rarely_exceeds_one_with_a_larger_mean(k, failures, rest_k, rest_failures):
    """So strata whose means agree with the effect need no probability."""
    a, b, c, d = (np.array([x + 0.5]) for x in (k, failures, rest_k, rest_failures))
    above = float(compute_probability_greater(a, b, c, d)[0])
    against = above if a / (a + b) <= c / (c + d) else 1.0 - above
    assert against < MOST_AGAINST_MEANS


def test_the_worst_case_of_means_is_a_chi_square():
    """After no conversions in many the rate is a chi-square variable with one degree of freedom."""
    k, n, many = np.array([0.5]), np.array([1e6]), np.array([1e9])
    above = compute_probability_greater(k, n, many * k / (n + k), many)
    assert (
        float(1.0 - above[0]) == np.float64(stats.chi2(1).cdf(1.0)).round(9)
        or abs(float(1.0 - above[0]) - stats.chi2(1).cdf(1.0)) < 2e-3
    )
    assert stats.chi2(1).cdf(1.0) < MOST_AGAINST_MEANS


def test_a_low_threshold_looks_at_every_stratum():
    strata = pl.DataFrame(
        {
            "cell": [7, 7], "variable": ["source", "source"], "stratum": ["a", "b"],
            "n": [40, 40], "k": [9, 7], "base_n": [400, 400], "base_k": [80, 80],
        },
        schema=STRATA,
    )  # fmt: skip
    acts = pl.DataFrame({"cell": [7], "lift": [1.2], "naive_lift": [1.2]})
    low = LearningConfig(reversal_probability=0.51)
    found = find_reversals(acts, strata, low)["reversals"].to_list()
    assert [[r["stratum"] for r in listed] for listed in found] == [["b"]]
    assert 0.51 < found[0][0]["probability"] < 0.80
    assert find_reversals(acts, strata, LearningConfig())["reversals"].to_list() == [None]


LEVEL = 0.05


def _hold(k, tables):
    """One row of `HELD`: tables are (n, rows, hits) of the strata."""
    laws = [stats.hypergeom(rows, hits, n) for n, rows, hits in tables]
    mean, variance = (sum(float(getattr(law, what)()) for law in laws) for what in ("mean", "var"))
    third = sum(
        float(law.stats("s")) * float(law.var()) ** 1.5 for law in laws if float(law.var()) > 0
    )
    return pl.DataFrame([(7, "source", k, mean, variance, third)], schema=HELD, orient="row")


def _explain(k, tables, lift):
    acts = pl.DataFrame({"cell": [7], "lift": [lift]})
    return find_explanations(acts, _hold(k, tables), LEVEL).rows()


@settings(max_examples=300, deadline=None)
@given(st.integers(20, 200), st.integers(60, 400), st.floats(0.05, 0.6), st.floats(0, 1))
def test_what_does_not_stand_out_on_its_side_is_explained(n, others, rate, place):
    """Against the exact mid-p of one table."""
    rows = n + others
    hits = max(1, round(rate * rows))
    law = stats.hypergeom(rows, hits, n)
    k = int(law.ppf(place)) if place > 0 else int(law.support()[0])
    for lift, tail in ((1.5, float(law.sf(k))), (0.5, float(law.cdf(k - 1)))):
        mid_p = tail + float(law.pmf(k)) / 2
        if abs(mid_p - LEVEL) > 0.01:
            is_explained = bool(_explain(k, [(n, rows, hits)], lift))
            assert is_explained == (mid_p > LEVEL), (mid_p, lift)


def test_a_cell_that_fills_its_strata_cannot_be_told_from_them():
    assert _explain(40, [(100, 100, 40)], 2.0) == [(7, ["source"])]


def test_what_works_in_every_stratum_is_not_explained():
    tables = [(50, 500, 50), (60, 300, 90)]
    assert _explain(20 + 40, tables, 1.7) == []
    assert _explain(20 + 40, tables, 0.7) == [(7, ["source"])]


def test_strata_are_named_as_a_reader_knows_them():
    """Months come from dates, so the name of each is compared with its dates' own."""
    days = pl.date_range(date(2024, 11, 1), date(2026, 2, 28), "17d", eager=True).cast(
        pl.Datetime("us", "UTC")
    )
    named = _name_strata("month", _month(days))
    assert named.to_list() == days.dt.strftime("%Y-%m").to_list()
    touches = pl.Series([None, 1, 8], dtype=pl.Int32)
    assert _name_strata("touch_stratum", touches).to_list() == ["unknown", "1", "8+"]
    assert _name_strata("source", pl.Series([None, "8"])).to_list() == ["unknown", "8"]
