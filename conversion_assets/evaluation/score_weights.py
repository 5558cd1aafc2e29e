"""Learned weights of the lead score, judged on leads later in time than those they come from."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import (
    DEFAULT_WEIGHTS,
    SCORE_CAPS,
    SCORE_COMPONENTS,
    WEIGHT_BOUNDS,
    WEIGHT_SUM,
)
from conversion_assets.stats.logistic import compute_probabilities, fit_calibration, fit_logistic
from conversion_assets.stats.ranking import (
    bootstrap_auc_difference,
    compute_auc,
    compute_brier,
    compute_top_share,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The earlier half learns, the later half judges, as with mined sequences. Four coefficients need
# less than the comparison does: where authority counts three times as much as the others, 10,000
# leads at 15 % recommend the learned weights for 88 % of clients with halves and for 77 % with
# 65 % to learn from; without an effect both stay at 5 %.
TRAIN_SHARE = 0.50

# Learned weights count n / (n + 100) against the defaults, n being the rarer of conversions and
# non-conversions among the training leads: that number, not the number of leads, sets how
# precise the coefficients are (Riley et al. 2024 find 100 of them too few on their own). At the
# number at which the learned weights may first be recommended they and the defaults count about
# equally.
EVIDENCE_SCALE = 100.0

# Fewer test conversions (or non-conversions) and a percentile interval is too narrow to trust.
LEAST_TEST_CLASS = 10

# Weight of the defaults among proportional weights, only there to say how components with a
# coefficient of 0 share what the bounded others leave over.
DEFAULT_TRACE = 1e-6

# Decimals a score keeps. Leads with the same points in other components tie in exact arithmetic
# (the default weights give every point 1); rounding error must not order them.
SCORE_DECIMALS = 9

_CAPS = np.array([SCORE_CAPS[name] for name in SCORE_COMPONENTS], dtype=np.float64)
_DEFAULTS = np.array([DEFAULT_WEIGHTS[name] for name in SCORE_COMPONENTS])
_WEIGHTS_TYPE = pl.Struct(dict.fromkeys(SCORE_COMPONENTS, pl.Float64))


@dataclass(frozen=True)
class _Leads:
    """Leads with all components, sorted by client, time and id; arrays of shape (leads,)."""

    client: Ints
    points: Floats
    label: Bools
    is_train: Bools


def evaluate_score_weights(frame: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Learn score weights per client on earlier leads and compare them on later ones.

    Leads are split by time of creation into halves, leads of the same moment together.
    A logistic regression with non-negative coefficients on the components, each scaled to [0, 1]
    by its cap, gives proportional weights. They are projected onto the weights allowed
    (`project_weights`), then shrunk towards the defaults by n / (n + 100), n being the rarer of
    conversions and non-conversions among the training leads. A component that does not vary
    among them keeps its default weight: the data say nothing about it.

    The weights that are recommended are the ones that were tested, not a later fit on all leads:
    the comparison speaks about these numbers and no others.

    Args:
        frame: One row per lead: client_id, lead_id (String), created_at (Datetime), converted
            (Boolean), data_quality, authority, company_fit, timing (points, Float64). Leads with
            a null or non-finite component, outcome or time are left out and counted.
        config: Interval mass, replicates, seed and least conversions come from here.

    Returns:
        One row per client, ordered by client_id: the fields of `ScoreEvaluation`
        (learned_weights a struct, difference_interval a list, null where unknown), and
        recommended_weights (struct), n_left_out, conversions (of the leads used).

    Example:
        >>> evaluate_score_weights(pl.DataFrame(schema={
        ...     "client_id": pl.String, "lead_id": pl.String,
        ...     "created_at": pl.Datetime("us", "UTC"), "converted": pl.Boolean,
        ...     **dict.fromkeys(SCORE_COMPONENTS, pl.Float64)}), LearningConfig()).height
        0
    """
    is_usable = pl.col("converted").is_not_null() & pl.col("created_at").is_not_null()
    for name in SCORE_COMPONENTS:
        is_usable &= pl.col(name).cast(pl.Float64).is_finite().fill_null(value=False)
    clients = frame.group_by("client_id").agg((~is_usable).sum().cast(pl.Int64).alias("n_left_out"))
    clients = clients.sort("client_id").with_row_index("client")
    leads = _read_leads(frame.filter(is_usable), clients)
    columns = _evaluate(leads, clients.height, config)
    result = clients.drop("client").with_columns(**columns)
    return _explain(result, config)


def _read_leads(usable: pl.DataFrame, clients: pl.DataFrame) -> _Leads:
    ordered = usable.join(clients.select("client_id", "client"), on="client_id").sort(
        "client", "created_at", "lead_id"
    )
    client = ordered["client"].cast(pl.Int64).to_numpy()
    created = ordered["created_at"].to_physical().to_numpy()
    points = ordered.select(pl.col(*SCORE_COMPONENTS).cast(pl.Float64)).to_numpy()
    label = ordered["converted"].to_numpy().astype(np.bool_)
    return _Leads(client, points, label, _split_by_time(client, created, clients.height))


def _split_by_time(client: Ints, created: Ints, clients: int) -> Bools:
    """Which leads are for training: a client's earlier ones, up to a change of time.

    The border is the start of a moment nearest to the wanted share; of a client with one moment
    only all leads are for training.
    """
    count = np.bincount(client, minlength=clients)
    first = np.cumsum(count) - count
    position = np.arange(client.size) - first[client]
    is_border = np.zeros(client.size, dtype=np.bool_)
    is_border[1:] = (client[1:] == client[:-1]) & (created[1:] != created[:-1])
    border = np.flatnonzero(is_border)
    distance = np.abs(position[border] - TRAIN_SHARE * count[client[border]])
    # Nearest border of each client, the earlier one of two equally near.
    border = border[np.lexsort((border, distance, client[border]))]
    owner, nearest = np.unique(client[border], return_index=True)
    train_count = count.copy()
    train_count[owner] = position[border[nearest]]
    return np.asarray(position < train_count[client], dtype=np.bool_)


def _evaluate(leads: _Leads, clients: int, config: LearningConfig) -> dict[str, pl.Series]:
    """All columns that follow from the leads by arithmetic, each of length clients."""
    is_train, is_test = leads.is_train, ~leads.is_train
    train, test = leads.client[is_train], leads.client[is_test]
    train_label, test_label = leads.label[is_train], leads.label[is_test]
    scaled = np.clip(leads.points / _CAPS, 0.0, 1.0)
    weights, is_learned, signals = _learn_weights(train, scaled[is_train], train_label, clients)
    learned = _compute_scores(leads.client, scaled, weights)
    default = _compute_scores(leads.client, scaled, np.tile(_DEFAULTS, (clients, 1)))
    calibration = fit_calibration(train, learned[is_train], train_label, clients)
    predicted = compute_probabilities(test, learned[is_test, None], calibration)
    logit = calibration.intercept[test] + calibration.coefficients[test, 0] * learned[is_test]
    is_predicted = np.isfinite(logit)
    slope = fit_calibration(
        test[is_predicted], logit[is_predicted], test_label[is_predicted], clients
    )
    auc_learned = compute_auc(test, learned[is_test], test_label, clients)
    auc_learned[~is_learned] = np.nan
    auc_default = compute_auc(test, default[is_test], test_label, clients)
    interval = _compare(
        test, (learned[is_test], default[is_test]), test_label, is_learned, config=config
    )
    top_share = compute_top_share(test, learned[is_test], test_label, clients)
    top_share[~is_learned] = np.nan
    counts = {
        "n_train": np.bincount(train, minlength=clients),
        "n_test": np.bincount(test, minlength=clients),
        "conversions": np.bincount(leads.client[leads.label], minlength=clients),
        "train_conversions": np.bincount(train[train_label], minlength=clients),
        "test_conversions": np.bincount(test[test_label], minlength=clients),
        "varying": signals,
    }
    values = {
        "auc_learned": auc_learned,
        "auc_default": auc_default,
        "difference": auc_learned - auc_default,
        "low": interval[0],
        "high": interval[1],
        "calibration_slope": np.where(is_learned, slope.coefficients[:, 0], np.nan),
        "brier": np.where(is_learned, compute_brier(test, predicted, test_label, clients), np.nan),
        "top_20_share": top_share,
    }
    columns = {name: pl.Series(value.astype(np.int64)) for name, value in counts.items()}
    columns |= {name: pl.Series(value).fill_nan(None) for name, value in values.items()}
    columns["is_learned"] = pl.Series(is_learned)
    columns |= {f"w_{n}": pl.Series(weights[:, j]) for j, n in enumerate(SCORE_COMPONENTS)}
    return columns


def _learn_weights(
    client: Ints, scaled: Floats, label: Bools, clients: int
) -> tuple[Floats, Bools, Ints]:
    """Shrunk weights (clients, 4), whether anything was learned, components that vary.

    Clients from whom nothing could be learned get the defaults.
    """
    shape = (clients, len(SCORE_COMPONENTS))
    highest, lowest = np.full(shape, -np.inf), np.full(shape, np.inf)
    np.maximum.at(highest, client, scaled)
    np.minimum.at(lowest, client, scaled)
    varies = highest > lowest
    fit = fit_logistic(client, scaled, label, clients)
    coefficients = np.where(varies & fit.converged[:, None], fit.coefficients, 0.0)
    is_learned = fit.converged & (coefficients > 0).any(axis=1)
    projected = project_weights(coefficients, varies)
    rows = np.bincount(client, minlength=clients)
    conversions = np.bincount(client[label], minlength=clients)
    rarer = np.minimum(conversions, rows - conversions).astype(np.float64)
    own = (rarer / (rarer + EVIDENCE_SCALE))[:, None]
    shrunk = own * projected + (1.0 - own) * _DEFAULTS
    return np.where(is_learned[:, None], shrunk, _DEFAULTS), is_learned, varies.sum(axis=1)


def project_weights(coefficients: Floats, varies: Bools) -> Floats:
    """Allowed weights nearest to the proportions of the coefficients.

    Weights are c_j · s clipped to the bounds, with the one s that makes them sum to 0.85. This is
    the projection in Kullback-Leibler divergence (minimum of the sum of w·log(w / c)): weights
    within the bounds keep the proportions of their coefficients, which is all that a ranking
    uses; the Euclidean projection would change them. Components with coefficient 0 share what
    the others leave over in proportion to the defaults. s is found exactly, from the pieces of a
    piecewise linear function.

    Args:
        coefficients: Not negative, shape (clients, 4).
        varies: False for components that keep their default weight, shape (clients, 4).

    Returns:
        Weights within [0.05, 0.50] that sum to 0.85, shape (clients, 4).

    Example:
        >>> free = np.ones((2, 4), dtype=bool)
        >>> project_weights(np.array([[1.0, 2, 1, 1], [0, 9, 0, 0]]), free).round(3).tolist()
        [[0.17, 0.34, 0.17, 0.17], [0.117, 0.5, 0.146, 0.087]]
    """
    total = _add(coefficients)
    share = coefficients / np.where(total > 0, total, 1.0)[:, None] + DEFAULT_TRACE * _DEFAULTS
    low = np.where(varies, WEIGHT_BOUNDS[0], _DEFAULTS)
    high = np.where(varies, WEIGHT_BOUNDS[1], _DEFAULTS)
    knots = np.sort(np.concatenate([low / share, high / share], axis=1), axis=1)
    sums = np.empty_like(knots)
    for column in range(knots.shape[1]):
        sums[:, column] = _add(np.clip(knots[:, column, None] * share, low, high))
    # Between two neighbouring knots the sum is linear; take the piece that reaches the total.
    piece = np.clip((sums < WEIGHT_SUM).sum(axis=1), 1, knots.shape[1] - 1)
    row = np.arange(knots.shape[0])
    left, right = knots[row, piece - 1], knots[row, piece]
    rise = sums[row, piece] - sums[row, piece - 1]
    part = np.where(rise > 0, (WEIGHT_SUM - sums[row, piece - 1]) / np.where(rise > 0, rise, 1), 0)
    scale = left + np.clip(part, 0.0, 1.0) * (right - left)
    return np.asarray(np.clip(scale[:, None] * share, low, high), dtype=np.float64)


def _add(values: Floats) -> Floats:
    """Sum over the four columns from left to right, the same on every machine."""
    total = values[:, 0] + values[:, 1] + values[:, 2] + values[:, 3]
    return np.asarray(total, dtype=np.float64)


def _compute_scores(client: Ints, scaled: Floats, weights: Floats) -> Floats:
    """Score of each lead in points of 85 (risk is not known here), rounded so that ties tie."""
    score = np.zeros(client.size)
    for j in range(len(SCORE_COMPONENTS)):
        score += weights[client, j] * scaled[:, j]
    return np.round(100.0 * score, SCORE_DECIMALS)


def _compare(
    test: Ints,
    scores: tuple[Floats, Floats],
    label: Bools,
    is_learned: Bools,
    *,
    config: LearningConfig,
) -> tuple[Floats, Floats]:
    """Bootstrap interval of the difference in AUC where there is enough to resample, else NaN."""
    clients = is_learned.size
    positives = np.bincount(test[label], minlength=clients)
    negatives = np.bincount(test[~label], minlength=clients)
    is_comparable = is_learned & (np.minimum(positives, negatives) >= LEAST_TEST_CLASS)
    number = np.cumsum(is_comparable) - 1
    kept = is_comparable[test]
    interval = bootstrap_auc_difference(
        number[test[kept]],
        (scores[0][kept], scores[1][kept]),
        label[kept],
        int(is_comparable.sum()),
        replicates=config.bootstrap_replicates,
        seed=config.seed,
        mass=config.credible_mass,
    )
    low, high = np.full(clients, np.nan), np.full(clients, np.nan)
    low[is_comparable], high[is_comparable] = interval.low, interval.high
    return low, high


def _explain(result: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Add the decision, its reason and the weights it comes to; drop what only served them."""
    enough = pl.col("conversions") >= config.recommend_minimum_conversions
    recommended = (pl.col("is_learned") & enough & (pl.col("low") > 0)).fill_null(value=False)
    learned = pl.struct([pl.col(f"w_{name}").alias(name) for name in SCORE_COMPONENTS])
    defaults = pl.struct([pl.lit(DEFAULT_WEIGHTS[name]).alias(name) for name in SCORE_COMPONENTS])
    interval = pl.concat_list("low", "high")
    return result.select(
        "client_id",
        "auc_learned",
        "auc_default",
        "difference",
        pl.when(pl.col("low").is_not_null()).then(interval).alias("difference_interval"),
        "calibration_slope",
        "brier",
        "top_20_share",
        "n_train",
        "n_test",
        pl.when("is_learned").then(learned).cast(_WEIGHTS_TYPE).alias("learned_weights"),
        recommended.alias("recommended"),
        _word_reason(recommended, enough, config).alias("reason"),
        pl.when(recommended)
        .then(learned)
        .otherwise(defaults)
        .cast(_WEIGHTS_TYPE)
        .alias("recommended_weights"),
        "conversions",
        "n_left_out",
    )


def _word_reason(recommended: pl.Expr, enough: pl.Expr, config: LearningConfig) -> pl.Expr:
    """Why, in plain words; the first case that applies."""
    used = pl.col("n_train") + pl.col("n_test")
    figures = pl.format(
        "on {} later leads their AUC is {} against {} (difference {}, {} % interval {} to {}).",
        "n_test",
        *(pl.col(name).round(3) for name in ("auc_learned", "auc_default", "difference")),
        pl.lit(round(100 * config.credible_mass)),
        *(pl.col(name).round(3) for name in ("low", "high")),
    )
    return (
        pl.when(used == 0)
        .then(pl.lit("Default weights: no lead has all four score components."))
        .when(pl.col("n_test") == 0)
        .then(pl.lit("Default weights: all leads are of one moment, none is later to test on."))
        .when(pl.col("train_conversions") == 0)
        .then(pl.lit("Default weights: none of the earlier leads converted, nothing to learn."))
        .when(pl.col("train_conversions") == pl.col("n_train"))
        .then(pl.lit("Default weights: all of the earlier leads converted, nothing to learn."))
        .when(pl.col("varying") == 0)
        .then(pl.lit("Default weights: the score components are the same for all earlier leads."))
        .when(~pl.col("is_learned"))
        .then(pl.lit("Default weights: no component goes with more conversions in earlier leads."))
        .when(~enough)
        .then(
            pl.format(
                "Default weights: {} conversions, {} are needed to recommend learned weights.",
                "conversions",
                pl.lit(config.recommend_minimum_conversions),
            )
        )
        .when(pl.col("low").is_null())
        .then(
            pl.format(
                "Default weights: {} of {} later leads converted; to compare, {} must have "
                "converted and {} not.",
                "test_conversions",
                "n_test",
                pl.lit(LEAST_TEST_CLASS),
                pl.lit(LEAST_TEST_CLASS),
            )
        )
        .when(recommended)
        .then(pl.format("Learned weights rank better: {}", figures))
        .otherwise(
            pl.format("Default weights: learned ones do not surely rank better; {}", figures)
        )
    )
