"""What is left out when strata are compared cannot matter."""

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conversion_assets.detectors.reversals import MOST_AGAINST_MEANS, STRATA, find_reversals
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
