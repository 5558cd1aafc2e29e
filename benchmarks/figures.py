"""The figures of docs/statistics.md: each method on simulated data, beside the naive answer.

Truth is planted, seeds are fixed, and the files are the same bytes every time.

Run: python -m benchmarks.figures [name ...]
"""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from conversion_assets.detectors.cells import Dimension, summarize_cells
from conversion_assets.detectors.documents import compute_confidence
from conversion_assets.detectors.ledger import HELD_EVIDENCE
from conversion_assets.detectors.population import select_population
from conversion_assets.detectors.when import compute_neighbour_lift
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import (
    DEFAULT_WEIGHTS,
    SCORE_CAPS,
    SCORE_COMPONENTS,
    PatternType,
)
from conversion_assets.evaluation.forward import LOST_EVIDENCE, decide_status
from conversion_assets.evaluation.score_weights import evaluate_score_weights
from conversion_assets.features import build_features
from conversion_assets.stats.adaptive import compute_adaptive_rate_interval
from conversion_assets.stats.intervals import compute_beta_interval
from conversion_assets.stats.logistic import fit_logistic
from conversion_assets.stats.markov import (
    CONVERTED,
    LOST,
    compute_removal_effects,
    count_transitions,
)
from conversion_assets.stats.multiplicity import (
    adjust_benjamini_hochberg,
    compute_moments,
    compute_two_sided_p,
    compute_upper_mid_p,
)
from conversion_assets.stats.pooling import compute_pool_lift
from conversion_assets.stats.predictive import compute_forward_lift, compute_log_evidence_against
from conversion_assets.stats.ranking import compute_auc
from conversion_assets.stats.sequential import compute_always_valid_p
from conversion_assets.stats.shrinkage import (
    compute_typical_spread,
    shrink_rates,
    weigh_spreads,
)
from conversion_assets.stats.survival import (
    compute_quantile_times,
    fit_kaplan_meier,
)

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "statistics"
# Okabe and Ito's colours, told apart by the colour-blind; markers differ besides.
NAIVE = {"color": "#D55E00", "marker": "s", "markersize": 4, "linewidth": 1.4}
OURS = {"color": "#0072B2", "marker": "o", "markersize": 4, "linewidth": 1.4}
TRUTH = {"color": "#000000", "linestyle": "--", "linewidth": 1.0}
STYLE = {
    "svg.hashsalt": "statistics",
    "svg.fonttype": "none",  # text stays text: small files, and readable by machines
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
Draw = Callable[[Axes], None]


def _moments(
    rows: np.ndarray, conversions: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and third moment of cells' counts under no effect, as the detectors do it."""
    counts = pl.DataFrame(
        {
            "client": np.arange(rows.size),
            "value": "cell",
            "n": size,
            "k": np.zeros(rows.size, int),
            "base_n": rows,
            "base_k": conversions,
        }
    )
    cells = summarize_cells(counts)
    mean, variance, third = (cells[name].to_numpy() for name in ("expected", "variance", "third"))
    return mean, variance, third


def _count(frame: pl.DataFrame, value: str, strata: Sequence[str]) -> pl.DataFrame:
    """Cells of one client, adjusted: value, n, k, expected."""
    base = frame.group_by(*strata).agg(base_n=pl.len(), base_k=pl.col("won").sum())
    counts = (
        frame.group_by(value, *strata)
        .agg(n=pl.len(), k=pl.col("won").sum())
        .join(base, on=list(strata))
        .with_columns(client=pl.lit(0))
        .rename({value: "value"})
        .sort("client", "value", *strata)
    )
    return summarize_cells(counts)


def draw_maturity(ax: Axes) -> None:
    """A source that is 30 days old, converting like all others."""
    rng = np.random.default_rng(1)
    n, as_of = 40_000, datetime(2026, 1, 4, tzinfo=UTC)
    age = rng.uniform(0, 365, n)
    delay = rng.gamma(2.0, 8.5, n)
    known = (rng.random(n) < 0.12) & (delay < age)
    created = pl.Series([as_of - timedelta(days=float(a)) for a in age])
    leads = pl.DataFrame(
        {"id": [f"{i:05d}" for i in range(n)], "client_id": "c", "created_at": created}
    ).with_columns(
        status=pl.when(pl.Series(known)).then(pl.lit("converted")).otherwise(pl.lit("contacted")),
        converted_at=pl.when(pl.Series(known)).then(
            created + pl.Series([timedelta(days=float(d)) for d in delay])
        ),
    )
    sent = leads.select(
        "client_id", id="id", lead_id="id", action=pl.lit("email_sent"), occurred_at="created_at"
    )
    built = build_features(None, leads, sent)
    population = select_population(built.leads, built.touches, ["c"], as_of, LearningConfig())
    mature = population.leads
    kept = known | (age >= population.summary["maturity_days"][0])
    edges = np.arange(0, 127, 7)
    middle = edges[:-1] + 3.5

    def rate(ages: np.ndarray, won: np.ndarray) -> np.ndarray:
        size, _ = np.histogram(ages, edges)
        count, _ = np.histogram(ages[won], edges)
        return np.where(size > 0, count / np.maximum(size, 1), np.nan)

    ax.plot(middle, rate(age[kept], known[kept]), label="young leads dropped if open", **NAIVE)
    ax.plot(
        middle,
        rate(mature["age_days"].to_numpy(), mature["is_converted"].to_numpy()),
        label="all young leads dropped",
        **OURS,
    )
    ax.axhline(0.12, label="truth", **TRUTH)
    ax.set(xlabel="age of the lead in days", ylabel="conversion rate read", ylim=(0, 1.05))
    ax.legend()


def draw_test(ax: Axes) -> None:
    """Realised level of a 1 % test of cells without effect."""
    rng = np.random.default_rng(2)
    expected = np.array([0.7, 1, 1.5, 2, 3, 5, 8, 12, 20, 40])
    rate, cells = 0.03, 20_000
    ours, naive = [], []
    for mean in expected:
        size = np.full(cells, round(mean / rate))
        rows = 10 * size
        cell = rng.binomial(size, rate)
        total = cell + rng.binomial(rows - size, rate)
        moments = _moments(rows, total, size)
        ours.append(100 * (compute_two_sided_p(cell.astype(float), *moments) <= 0.01).mean())
        chi = (cell - moments[0]) ** 2 / np.maximum(moments[1], 1e-12)
        naive.append(100 * (stats.chi2.sf(chi, 1) <= 0.01).mean())
    ax.plot(expected, naive, label="chi-square", **NAIVE)
    ax.plot(expected, ours, label="mid-p, shifted binomial", **OURS)
    ax.axhline(1.0, label="level promised", **TRUTH)
    ax.set(xlabel="conversions expected in the cell", ylabel="called at the 1 % level, %",
           xscale="log", ylim=(0, None))  # fmt: skip
    ax.set_xticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    ax.legend()


def draw_ledger(ax: Axes) -> None:
    """False share of what is called; real effects are 1.6 and 0.4, as many of each."""
    rng = np.random.default_rng(3)
    clients, cells, size, rate = 500, 120, 400, 0.1
    real = np.array([0, 2, 4, 10, 20, 40])
    shares: dict[str, list[float]] = {"plain": [], "ledger": []}
    for count in real:
        cell = np.arange(cells)
        lift = np.where(cell < count, np.where(cell % 2 == 0, 1.6, 0.4), 1.0)
        k = rng.binomial(size, np.tile(rate * lift, (clients, 1)))
        total = k.sum(axis=1, keepdims=True)
        rows = np.full(clients * cells, size * cells)
        moments = _moments(rows, np.repeat(total, cells), np.full(clients * cells, size))
        p = compute_two_sided_p(k.ravel().astype(float), *moments)
        q = adjust_benjamini_hochberg(p, np.repeat(np.arange(clients), cells))
        for name, called in (("plain", p <= 0.05), ("ledger", q <= 0.10)):
            table = called.reshape(clients, cells)
            false = table[:, count:].sum(axis=1)
            shares[name].append(float(np.mean(false / np.maximum(table.sum(axis=1), 1))))
    places = np.arange(real.size)
    ax.plot(places, shares["plain"], label="p <= 0.05 for each cell", **NAIVE)
    ax.plot(places, shares["ledger"], label="q <= 0.10 in one ledger", **OURS)
    ax.axhline(0.10, label="promised", **TRUTH)
    ax.set_xticks(places, [str(x) for x in real])
    ax.set(xlabel="cells with a real effect, of 120", ylabel="false share of what is called",
           ylim=(0, 1.05))  # fmt: skip
    ax.legend(loc="upper right")


def draw_shrinkage(ax: Axes) -> None:
    """Fifty small cells of one client; one of them truly converts at twice the rate."""
    rng = np.random.default_rng(4)
    base, cells = 0.08, 50
    n = rng.integers(15, 90, cells).astype(float)
    n[7] = 150.0
    truth = base * np.exp(rng.normal(0, 0.1, cells))
    truth[7] = 3 * base
    k = rng.binomial(n.astype(int), truth).astype(float)
    group, prior = np.zeros(cells, int), np.full(cells, base)
    shrunk = shrink_rates(k, n, prior, weigh_spreads(k, n, prior, group, 1))
    order = np.argsort(k / n)
    place = np.arange(cells)
    ax.vlines(place, (k / n)[order], shrunk.mean[order], color="#BBBBBB", linewidth=0.8)
    ax.plot(place, (k / n)[order], label="raw rate", **{**NAIVE, "linewidth": 0})
    ax.plot(place, shrunk.mean[order], label="shrunk rate", **{**OURS, "linewidth": 0})
    ax.plot(place, truth[order], "k_", markersize=6, label="truth")
    ax.set(xlabel="cells, by raw rate", ylabel="conversion rate")
    ax.legend(loc="upper left")


def draw_pool(ax: Axes) -> None:
    """Error of the lift of one title that works alike (about 1.5) for thirty clients."""
    rng = np.random.default_rng(5)
    clients, repeats, base = 30, 500, 0.10
    sizes = np.array([20, 40, 80, 160, 320, 640, 1280])
    errors: dict[str, list[float]] = {"raw": [], "own": [], "pool": []}
    for size in sizes:
        lift = 1.5 * np.exp(rng.normal(0, 0.15, (repeats, clients)))
        n = np.where(np.arange(clients) == 0, size, 300.0) * np.ones((repeats, 1))
        k = rng.binomial(n.astype(int), base * lift).astype(float)
        prior = compute_pool_lift(
            k.ravel(), (n * base).ravel(), np.repeat(np.arange(repeats), clients), repeats,
            minimum_contributors=5, maximum_share=0.25,
        ).reshape(repeats, clients)[:, 0]  # fmt: skip
        ours, own_n = k[:, 0], n[:, 0]
        group = np.arange(repeats)
        for name, mean in (("own", np.full(repeats, base)), ("pool", base * prior)):
            weights = weigh_spreads(ours, own_n, mean, group, repeats)
            estimate = shrink_rates(ours, own_n, mean, weights).mean / base
            errors[name].append(float(np.sqrt(np.mean((estimate - lift[:, 0]) ** 2))))
        errors["raw"].append(float(np.sqrt(np.mean((ours / own_n / base - lift[:, 0]) ** 2))))
    ax.plot(sizes, errors["raw"], label="raw", **NAIVE)
    ax.plot(sizes, errors["own"], label="shrunk to the client", color="#009E73", marker="^",
            markersize=4, linewidth=1.4)  # fmt: skip
    ax.plot(sizes, errors["pool"], label="shrunk to the pool", **OURS)
    ax.set(xlabel="leads with the title", ylabel="error of the lift (RMS)", xscale="log",
           ylim=(0, None))  # fmt: skip
    ax.set_xticks(sizes, [str(x) for x in sizes])
    ax.minorticks_off()
    ax.legend()


def draw_lift(ax: Axes) -> None:
    """The effective arm of twelve randomised experiments, 64,000 subjects each."""
    from conversion_assets_tests.recovery.experiment import (  # noqa: PLC0415 - its tests' world
        ExperimentConfig,
        learn_experiment,
    )

    arms = [learn_experiment(ExperimentConfig(seed=seed)) for seed in range(12)]
    green = pl.concat(arms).filter(arm="green")
    place = np.arange(green.height)
    base = (green["rate"] / green["raw_lift"]).to_numpy()
    low, high = (green[name].to_numpy() / base for name in ("own_low", "own_high"))
    own = green["raw_lift"].to_numpy()
    lift = green["lift"].to_numpy()
    around = (green["lift_low"].to_numpy(), green["lift_high"].to_numpy())
    bar = {"linestyle": "none", "capsize": 0, "markersize": 4, "elinewidth": 1.4}
    ax.errorbar(place - 0.14, own, [own - low, high - own], fmt="s", color=NAIVE["color"],
                label="raw, base rate taken as known", **bar)  # fmt: skip
    ax.errorbar(place + 0.14, lift, [lift - around[0], around[1] - lift], fmt="o",
                color=OURS["color"], label="lift as documents state it", **bar)  # fmt: skip
    ax.axhline(green["true_lift"][0], label="truth", **TRUTH)
    ax.axhline(1.0, color="#BBBBBB", linewidth=0.8)
    ax.set_xticks(place, [str(x + 1) for x in place])
    ax.set(xlabel="experiment", ylabel="lift, 90 % interval", ylim=(0.88, 1.62))
    ax.legend(loc="upper left", ncols=2, columnspacing=1.0, handletextpad=0.4)


def draw_intervals(ax: Axes) -> None:
    """How often intervals hold the truth of one value among eight, seven of which are usual."""
    rng = np.random.default_rng(12)
    repeats, values, size, base = 1500, 8, 250, 0.12
    group = np.repeat(np.arange(repeats), values)
    n, rate = np.full(group.size, float(size)), np.full(group.size, base)
    lifts = np.array([0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5])
    shares = []
    for lift in lifts:
        truth = np.where(np.arange(group.size) % values == 0, base * lift, base)
        k = rng.binomial(size, truth).astype(float)
        weights = weigh_spreads(k, n, rate, group, repeats)
        shrunk = shrink_rates(k, n, rate, weights)
        spread = compute_typical_spread(weights, group, repeats)
        ends = (
            compute_beta_interval(shrunk.a, shrunk.b, 0.9),
            compute_adaptive_rate_interval(k, n, rate, spread, 0.9),
        )
        shares.append([((low <= truth) & (truth <= high))[::values].mean() for low, high in ends])
    credible, ours = np.array(shares).T
    ax.plot(lifts, credible, label="credible interval", **NAIVE)
    ax.plot(lifts, ours, label="interval in use", **OURS)
    ax.axhline(0.9, label="90 %", **TRUTH)
    ax.set(
        xlabel="true lift of the value", ylabel="share of intervals that hold it", ylim=(0, 1.03)
    )
    ax.legend(loc="lower right")


def draw_adjustment(ax: Axes) -> None:
    """A template without effect that is used the more often the later the touch."""
    rng = np.random.default_rng(6)
    n = 150_000
    hazard = np.array([0.05, 0.04, 0.03, 0.02, 0.015, 0.012])
    slopes = np.array([-0.8, -0.4, 0.0, 0.4, 0.8])
    naive, ours = [], []
    for slope in slopes:
        touch = rng.integers(0, 6, n)
        used = rng.random(n) < 1 / (1 + np.exp(-slope * (touch - 2.5)))
        frame = pl.DataFrame(
            {
                "touch": touch,
                "template": np.where(used, "B", "A"),
                "won": rng.random(n) < hazard[touch],
            }
        )
        cell = _count(frame, "template", ["touch"]).filter(value="B")
        ours.append(cell["k"][0] / cell["expected"][0])
        naive.append(cell["k"][0] / cell["n"][0] / frame["won"].mean())
    ax.plot(slopes, naive, label="naive lift", **NAIVE)
    ax.plot(slopes, ours, label="adjusted for touch number", **OURS)
    ax.axhline(1.0, label="truth", **TRUTH)
    ax.set(xlabel="on early touches  ←  the template is used  →  on late touches", ylabel="lift",
           ylim=(0, 2))  # fmt: skip
    ax.set_xticks([])
    ax.legend()


def draw_explained(ax: Axes) -> None:
    """An industry without effect, more or less of which comes from a source that works."""
    rng = np.random.default_rng(18)
    clients, leads, rates = 4000, np.array([1000, 4000]), np.array([0.24, 0.12])
    shares = np.array([0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95])
    called, stands = [], []
    for share in shares:
        # By source: leads of the industry and of all others, and their conversions.
        own_n = np.round(leads * [share, (1 - share) / 4])
        own = rng.binomial(own_n.astype(int), rates, (clients, 2)).astype(float)
        others = rng.binomial((leads - own_n).astype(int), rates, (clients, 2))
        hits, k = own + others, own.sum(axis=1)
        whole = compute_moments(own_n.sum(), np.float64(leads.sum()), hits.sum(axis=1))
        held = [moment.sum(axis=1) for moment in compute_moments(own_n, leads, hits)]
        is_called = compute_upper_mid_p(k, *whole) <= 0.001
        called.append(is_called.mean())
        stands.append((is_called & (compute_upper_mid_p(k, *held) <= HELD_EVIDENCE)).mean())
    ax.plot(shares * 100, called, label="tested alone", **NAIVE)
    ax.plot(shares * 100, stands, label="and with the source held fixed", **OURS)
    ax.axhline(0.0, label="truth: no effect", **TRUTH)
    ax.set(xlabel="per cent of the source's leads in the industry", ylim=(-0.03, 1.03),
           ylabel="share of clients that\nwould be told it works")  # fmt: skip
    ax.legend()


def _simulate_paths(
    rng: np.random.Generator, leads: int, hazard: np.ndarray, drop: float
) -> tuple[np.ndarray, np.ndarray]:
    """Touches each lead got, and whether the last of them converted."""
    longest = hazard.size
    wins = rng.random((leads, longest)) < hazard
    stops = rng.random((leads, longest)) < drop
    stops[:, -1] = True
    touches = np.argmax(wins | stops, axis=1) + 1
    return touches, wins[np.arange(leads), touches - 1]


def draw_hazard(ax: Axes) -> None:
    """A flat 2 % a touch, 5 % of the leads end after each."""
    rng = np.random.default_rng(7)
    touches, won = _simulate_paths(rng, 100_000, np.full(8, 0.02), 0.05)
    row, step = np.nonzero(np.arange(8) < touches[:, None])
    frame = pl.DataFrame(
        {"touch": step + 1, "channel": "email", "won": won[row] & (step == touches[row] - 1)}
    )
    cells = _count(frame, "touch", ["channel"])
    naive = [won[touches == j].mean() for j in range(1, 9)]
    place = np.arange(1, 9)
    ax.plot(place, naive, label="conversion by number of touches got", **NAIVE)
    ax.plot(place, cells["k"] / cells["n"], label="hazard: of the leads that got touch k", **OURS)
    ax.axhline(0.02, label="truth", **TRUTH)
    ax.set(xlabel="touch", ylabel="share converting", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(0.05, 0.5))


def draw_gaps(ax: Axes) -> None:
    """Later touches wait longer and convert less; the wait itself does nothing."""
    rng = np.random.default_rng(8)
    n = 200_000
    position = rng.integers(2, 7, n)
    gap = np.clip(rng.poisson(position - 1), 0, 8)
    hazard = np.array([0.045, 0.035, 0.025, 0.018, 0.012])[position - 2]
    frame = pl.DataFrame({"position": position, "gap": gap, "won": rng.random(n) < hazard})
    cells = _count(frame, "gap", ["position"])
    days = cells["value"].to_numpy()
    ax.plot(
        days, cells["k"] / cells["n"] / frame["won"].mean(), label="all touches together", **NAIVE
    )
    ax.plot(days, cells["k"] / cells["expected"], label="compared within the position", **OURS)
    ax.axhline(1.0, label="truth", **TRUTH)
    ax.set(xlabel="days since the touch before", ylabel="lift", ylim=(0, 2))
    ax.legend()


def draw_channels(ax: Axes) -> None:
    """Hazard of 3 % a touch, whatever the channels; nobody drops out before touch 8."""
    rng = np.random.default_rng(9)
    leads, longest = 40_000, 8
    touches, won = _simulate_paths(rng, leads, np.full(longest, 0.03), 0.0)
    channel = rng.integers(0, 4, (leads, longest))
    seen = np.zeros((leads, longest, 4), bool)
    np.put_along_axis(seen, channel[:, :, None], True, axis=2)
    count = np.maximum.accumulate(seen, axis=1).sum(axis=2)
    final = count[np.arange(leads), touches - 1]
    row, step = np.nonzero(np.arange(longest) < touches[:, None])
    frame = pl.DataFrame(
        {
            "channels": count[row, step],
            "channel": channel[row, step],
            "touch": step,
            "won": won[row] & (step == touches[row] - 1),
        }
    )
    cells = _count(frame, "channels", ["channel", "touch"])
    place = np.arange(1, 5)
    naive = np.array([won[final == c].mean() for c in place]) / won.mean()
    ax.plot(place, naive, label="leads by channels they ever got", **NAIVE)
    ax.plot(place, cells["k"] / cells["expected"], label="touches, by channels so far", **OURS)
    ax.axhline(1.0, label="truth", **TRUTH)
    ax.set_xticks(place)
    ax.set(xlabel="distinct channels", ylabel="lift (log scale)", yscale="log")
    ax.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.legend()


def draw_hours(ax: Axes) -> None:
    """One client: a broad morning peak, 6,000 touches at 3 %."""
    rng = np.random.default_rng(10)
    hour = np.arange(24)
    lift = 0.9 + 0.8 * np.exp(-0.5 * ((hour - 10) / 1.7) ** 2)
    n = rng.poisson(250, 24).astype(float)
    k = rng.binomial(n.astype(int), 0.03 * lift).astype(float)
    expected = n * k.sum() / n.sum()
    cells = pl.DataFrame(
        {"client": 0, "value": hour.astype(str), "n": n, "k": k, "expected": expected}
    )
    dimension = Dimension(PatternType.WHEN, "best_hours", "touches", neighbours="hours")
    prior = expected / n * compute_neighbour_lift(cells, dimension).to_numpy()
    group = np.zeros(24, int)
    shrunk = shrink_rates(k, n, prior, weigh_spreads(k, n, prior, group, 1))
    ax.plot(hour, k / n, label="raw rate", **NAIVE)
    ax.plot(hour, shrunk.mean, label="shrunk towards its neighbours", **OURS)
    ax.plot(hour, 0.03 * lift, label="truth", **TRUTH)
    ax.set(xlabel="local hour", ylabel="hazard of a touch", ylim=(0, None))
    ax.set_xticks([0, 4, 8, 12, 16, 20])
    ax.legend(loc="upper right")


def draw_survival(ax: Axes) -> None:
    """15 % convert after 40 days in the middle; leads came in over the last 120 days."""
    rng = np.random.default_rng(11)
    n = 20_000
    delay = 40 * np.exp(0.7 * rng.standard_normal(n))
    time = np.where(rng.random(n) < 0.15, delay, np.inf)
    age = rng.uniform(0, 120, n)
    won = time <= age
    curves = fit_kaplan_meier(np.zeros(n, int), np.minimum(time, age), won, 1)
    grid = np.arange(0, 111, 5.0)
    at = np.searchsorted(curves.time, grid, side="right") - 1
    ours = np.where(at >= 0, 1 - curves.survival[np.maximum(at, 0)], 0.0)
    naive = np.array([(won & (time <= t)).mean() for t in grid])
    truth = 0.15 * stats.norm.cdf(np.log(np.maximum(grid, 1e-9) / 40) / 0.7)
    half = compute_quantile_times(curves, (0.5,), is_of_converted=True)[0, 0]
    ax.plot(grid, naive, label=f"of all leads so far (middle: {np.median(time[won]):.0f} days)",
            **NAIVE)  # fmt: skip
    ax.plot(grid, ours, label=f"Kaplan-Meier (middle: {half:.0f} days)", **OURS)
    ax.plot(grid, truth, label="truth (middle: 40 days)", **TRUTH)
    ax.set(xlabel="days since creation", ylabel="share converted", ylim=(0, None))
    ax.legend()


def draw_sequences(ax: Axes) -> None:
    """Best of 16 channel prefixes by clients without any effect."""
    rng = np.random.default_rng(12)
    clients, leads, prefixes, rate = 400, 2000, 16, 0.12
    size = rng.multinomial(leads // 2, np.full(prefixes, 1 / prefixes), (2, clients))
    k = rng.binomial(size, rate)

    def find_lift(n: np.ndarray, won: np.ndarray) -> np.ndarray:
        rows = np.repeat(n.sum(axis=1), prefixes)
        total = np.repeat(won.sum(axis=1), prefixes)
        expected, _, _ = _moments(rows, total, n.ravel())
        return won / expected.reshape(won.shape)

    whole, earlier, later = (
        find_lift(n, won)
        for n, won in ((size.sum(axis=0), k.sum(axis=0)), *zip(size, k, strict=True))
    )
    row = np.arange(clients)
    naive = whole[row, whole.argmax(axis=1)]
    ours = later[row, earlier.argmax(axis=1)]
    bins = np.arange(0.4, 2.01, 0.08)
    for values, style, label in (
        (naive, NAIVE, "found and judged on all leads"),
        (ours, OURS, "found on the earlier, judged on the later half"),
    ):
        ax.hist(values, bins, histtype="step", linewidth=1.6, color=style["color"], label=label)
    ax.axvline(1.0, label="truth", **TRUTH)
    ax.set(xlabel="lift of the best-looking prefix", ylabel="clients of 400")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_markov(ax: Axes) -> None:
    """LinkedIn opens doors that voice then closes; email is sent in between and does nothing."""
    rng = np.random.default_rng(13)
    names = ["email", "linkedin", "voice"]
    paths, channels, ends = [], [], []
    for path in range(6000):
        opened = rng.random() < 0.5
        steps = [1] if opened else []
        steps += [0] * int(rng.integers(1, 4))
        if opened:
            steps.append(2)
        won = rng.random() < (0.3 if opened else 0.03)
        if not opened and rng.random() < 0.3:
            steps.append(2)
        paths += [path] * len(steps)
        channels += steps
        ends += [CONVERTED if won else LOST] * len(steps)
    path, channel, end = (np.array(x) for x in (paths, channels, ends))
    zero = np.zeros(path.size, int)
    counts = count_transitions(zero, path, channel, end, groups=1, channels=3)
    effect = compute_removal_effects(counts)[0]
    is_last = np.append(path[1:] != path[:-1], True) & (end == CONVERTED)
    last = np.bincount(channel[is_last], minlength=3) / is_last.sum()
    place = np.arange(3)
    ax.barh(place - 0.18, last, 0.34, color=NAIVE["color"], label="share of converting touches")
    ax.barh(place + 0.18, effect, 0.34, color=OURS["color"], label="removal effect")
    ax.set_yticks(place, names)
    ax.set(xlabel="share of conversions", xlim=(0, 1.02))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_weights(ax: Axes) -> None:
    """Gain in AUC over the default weights for 200 clients whose components say nothing."""
    rng = np.random.default_rng(14)
    clients, leads = 200, 800
    n = clients * leads
    client = np.repeat(np.arange(clients), leads)
    scaled = rng.random((n, len(SCORE_COMPONENTS)))
    label = rng.random(n) < 0.15
    caps = np.array([SCORE_CAPS[name] for name in SCORE_COMPONENTS], float)
    frame = pl.DataFrame(
        {
            "client_id": [f"{c:03d}" for c in client],
            "lead_id": [f"{i:06d}" for i in range(n)],
            "created_at": datetime(2025, 1, 1, tzinfo=UTC)
            + pl.Series([timedelta(minutes=int(m)) for m in rng.integers(0, 500_000, n)]),
            "converted": label,
            **{name: scaled[:, j] * caps[j] for j, name in enumerate(SCORE_COMPONENTS)},
        }
    )
    judged = evaluate_score_weights(frame, LearningConfig(bootstrap_replicates=50))
    fit = fit_logistic(client, scaled, label, clients)
    same = (np.nan_to_num(fit.coefficients)[client] * scaled).sum(axis=1)
    default = scaled @ np.array([DEFAULT_WEIGHTS[name] for name in SCORE_COMPONENTS])
    naive = compute_auc(client, same, label, clients) - compute_auc(client, default, label, clients)
    ours = judged["difference"].drop_nulls().to_numpy()
    bins = np.arange(-0.12, 0.121, 0.01)
    for values, style, name in (
        (naive, NAIVE, "judged on the leads it was learned from"),
        (ours, OURS, "judged on later leads"),
    ):
        ax.hist(values, bins, weights=np.full(values.size, 1 / values.size), histtype="step",
                linewidth=1.6, color=style["color"], label=name)  # fmt: skip
    ax.axvline(0.0, label="truth", **TRUTH)
    ax.set(xlabel="AUC of learned weights less AUC of the defaults", ylabel="share of clients",
           ylim=(0, 0.36))  # fmt: skip
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_confidence(ax: Axes) -> None:
    """Confidence of a document by its sample, against a count of leads alone."""
    n = np.unique(np.geomspace(30, 10_000, 15).astype(int))
    ax.plot(n, n / (n + 100), label="from the number of leads alone", **NAIVE)
    for rate, marker in ((0.5, "^"), (0.12, "o"), (0.01, "v")):
        values = [compute_confidence(int(x), round(x * rate)) for x in n]
        ax.plot(n, values, label=f"{100 * rate:g} % converted", **{**OURS, "marker": marker})
    ax.axhline(LearningConfig().minimum_confidence, label="stored from here", **TRUTH)
    ax.set(xlabel="resolved leads", ylabel="confidence", xscale="log", ylim=(0, 1))
    ax.set_xticks([30, 100, 1000, 10_000], ["30", "100", "1,000", "10,000"])
    ax.minorticks_off()
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_looks(ax: Axes) -> None:
    """Cells without effect, looked at every week while the data grow."""
    rng = np.random.default_rng(15)
    looks, cells, share, rate = 60, 2000, 0.3, 0.12
    mine = rng.poisson(50 * share, (looks, cells))
    others = rng.poisson(50 * (1 - share), (looks, cells))
    won, gone = rng.binomial(mine, rate), rng.binomial(others, rate)
    size, rows, total, k = (
        np.cumsum(x, axis=0).ravel() for x in (mine, mine + others, won + gone, won)
    )
    moments = _moments(rows, total, size)
    ever = [
        (np.minimum.accumulate(p.reshape(looks, cells)) <= 0.05).mean(axis=1)
        for p in (
            compute_two_sided_p(k.astype(float), *moments),
            compute_always_valid_p(k.astype(float), *moments),
        )
    ]
    week = np.arange(1, looks + 1)
    ax.plot(week, ever[0], label="p-value of each week", **{**NAIVE, "markevery": 6})
    ax.plot(week, ever[1], label="always valid p-value", **{**OURS, "markevery": 6})
    ax.axhline(0.05, label="level promised", **TRUTH)
    ax.set(xlabel="looks", ylabel="cells ever at or below 0.05", ylim=(0, 0.4))
    ax.legend(loc="upper left")


def draw_forward(ax: Axes) -> None:
    """Claims of 1.6 (1.25 to 2.05) followed window by window; 12 conversions expected in each."""
    rng = np.random.default_rng(16)
    claims, windows, size, base_n, rate = 3000, 8, 100, 1000, 0.12
    for truth, line in ((1.6, "-"), (1.0, ":")):
        k = rng.binomial(size, rate * truth, (windows, claims)).astype(float)
        base_k = k + rng.binomial(base_n - size, rate, (windows, claims))
        expected = base_k * size / base_n
        variance = expected * (1 - size / base_n) * (base_n - base_k) / (base_n - 1)
        sums = [np.cumsum(x, axis=0) for x in (k, expected, variance, base_k)]
        low, high = np.full(claims, 1.25), np.full(claims, 2.05)
        lost, naive = np.zeros(claims, bool), np.zeros(claims, bool)
        shares = []
        for w in range(windows):
            seen, mean, spread, total = (x[w] for x in sums)
            log = compute_log_evidence_against(seen, mean, spread, total, (low, high))
            _, _, _, above = compute_forward_lift(seen, mean, spread, total, 0.90)
            lost |= decide_status(mean, above, log) == "lost"
            naive |= k[w] < expected[w]
            shares.append((naive.mean(), lost.mean()))
        name = "true claims" if truth > 1 else "claims of noise"
        place = np.arange(1, windows + 1)
        for column, style, rule in (
            (0, NAIVE, "a window below 1"),
            (1, OURS, f"evidence of {LOST_EVIDENCE:g}"),
        ):
            ax.plot(place, [s[column] for s in shares], label=f"{name}, {rule}",
                    **{**style, "linestyle": line})  # fmt: skip
    ax.set(xlabel="windows of 28 days graded", ylabel="ever called lost", ylim=(0, 1.03))
    ax.legend(loc="center right", bbox_to_anchor=(1.0, 0.52), fontsize=8)


FIGURES: dict[str, Draw] = {
    "maturity": draw_maturity,
    "test": draw_test,
    "ledger": draw_ledger,
    "shrinkage": draw_shrinkage,
    "pool": draw_pool,
    "lift": draw_lift,
    "intervals": draw_intervals,
    "adjustment": draw_adjustment,
    "explained": draw_explained,
    "hazard": draw_hazard,
    "gaps": draw_gaps,
    "channels": draw_channels,
    "hours": draw_hours,
    "survival": draw_survival,
    "sequences": draw_sequences,
    "markov": draw_markov,
    "weights": draw_weights,
    "confidence": draw_confidence,
    "looks": draw_looks,
    "forward": draw_forward,
}


def draw(name: str, path: Path) -> None:
    """Draw one figure into a file; the ending chooses the format."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        FIGURES[name](figure.add_subplot())
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, dpi=110)


def main(names: Sequence[str] = ()) -> None:
    """Write the named figures, or all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or FIGURES:
        path = FOLDER / f"{name}.svg"
        draw(name, path)
        print(f"{path.name:20} {path.stat().st_size / 1000:6.1f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
