import numpy as np
import polars as pl
import pytest
from scipy import stats

from conversion_assets.evaluation.drift import (
    COUNTS,
    compare_base_rates,
    compare_rates,
    compare_shares,
)


def draw(generator, clients, n, shares, rates, *, rows_per_lead=1):
    """Counts of many clients; all rows of a lead carry the same value."""
    leads = n // rows_per_lead
    picked = generator.multinomial(leads, shares, clients)
    k = generator.binomial(picked * rows_per_lead, rates)
    rows = [
        (
            f"c{c:05d}", "who", "d", f"v{v}", int(picked[c, v]) * rows_per_lead, int(k[c, v]),
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
