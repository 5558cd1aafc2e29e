"""The randomised experiment of another mechanism: a treatment moves how likely a subject is won.

Each subject has a propensity of its own, and each is drawn to one of three arms. A treatment
multiplies the odds. Every subject is sent one to three touches at random times, all of which carry
its arm as their template, until it converts. One that will convert does so by itself some time
after the first touch, or answers one of the touches it was to get, whichever. No touch has a
hazard that is drawn.

The documents speak of touches: conversions over touches sent, and lifts among touches of the same
number. Both are sums over few cases here, and known exactly.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from conversion_assets_tests.recovery.experiment import (
    ARMS,
    CLIENT,
    DAY,
    ZONES,
    Experiment,
    make_leads,
    name_subjects,
    to_times,
)

# Nothing is answered later than this, or after the next touch.
LONGEST_DELAY = 2 * DAY
# Points of the quadrature over the propensities; twice as many change no digit of the first ten.
_NODES = 60

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PropensityExperimentConfig:
    """What to generate.

    Attributes:
        subjects: leads, a third in each arm on average.
        base_rate: share of the control arm that converts.
        spread: standard deviation of a subject's own log odds, of unknown cause.
        blue: odds ratio of the first treatment.
        green: odds ratios of the second, for returning and for new subjects; half are each.
        touches: most touches a subject is to get; from one up, each number as likely.
        gap_days: mean days between two touches.
        by_itself: share of the converting ones that answer no touch.
        wait_days: mean days from the first touch to the moment of these.
        days: over which the subjects arrive.
    """

    subjects: int = 64_000
    base_rate: float = 0.006
    spread: float = 1.0
    blue: float = 1.0
    green: tuple[float, float] = (1.6, 1.1)
    touches: int = 3
    gap_days: float = 3.0
    by_itself: float = 0.4
    wait_days: float = 5.0
    seed: int = 1
    days: int = 300
    as_of: datetime = datetime(2026, 1, 4, tzinfo=UTC)
    world: str = "experiment, propensity"
    is_channel: bool = False

    @property
    def odds(self) -> Floats:
        """Odds ratios by arm, for new and for returning subjects, shape (3, 2)."""
        return np.array([[1.0, 1.0], [self.blue, self.blue], [self.green[1], self.green[0]]])

    def draw(self) -> Experiment:
        """See `generate_propensity_experiment`."""
        return generate_propensity_experiment(self)


def generate_propensity_experiment(config: PropensityExperimentConfig) -> Experiment:
    """Draw subjects, arms, touches and outcomes; all conversions known by `as_of` are stamped."""
    rng = np.random.default_rng([config.seed, 65])
    n, width = config.subjects, config.touches
    arm = rng.integers(len(ARMS), size=n)
    is_returning = rng.random(n) < 0.5
    place = rng.integers(len(ZONES), size=n)
    own = find_level(config) + config.spread * rng.standard_normal(n)
    will = rng.random(n) < expit(own + np.log(config.odds[arm, is_returning.astype(int)]))
    created = config.as_of.timestamp() - rng.random(n) * config.days * DAY
    steps = rng.exponential(config.gap_days * DAY, (n, width))
    steps[:, 0] = rng.random(n) * DAY
    at = created[:, None] + np.cumsum(steps, axis=1)
    planned = rng.integers(1, width + 1, size=n)
    following = np.concatenate([at[:, 1:], np.full((n, 1), np.inf)], axis=1)
    following[np.arange(n), planned - 1] = np.inf
    answered = rng.integers(planned)
    sent, after = at[np.arange(n), answered], following[np.arange(n), answered]
    answer = sent + rng.random(n) * np.minimum(after - sent, LONGEST_DELAY)
    alone = at[:, 0] + rng.exponential(config.wait_days * DAY, n)
    moment = np.where(rng.random(n) < config.by_itself, alone, answer)
    converted = np.where(will, moment, np.inf)
    is_planned = np.arange(width) < planned[:, None]
    subject, position = np.nonzero(is_planned & (at <= converted[:, None]))
    return Experiment(
        leads=make_leads(config.as_of, is_returning, place, created, converted),
        activities=_activity_rows(config, arm[subject], subject, position, at[subject, position]),
        truth=state_truth(config),
    )


def _activity_rows(
    config: PropensityExperimentConfig,
    arm: NDArray[np.int64],
    subject: NDArray[np.int64],
    position: NDArray[np.int64],
    at: Floats,
) -> pl.DataFrame:
    lead = name_subjects(config.subjects).gather(pl.Series(subject))
    number = pl.Series(position + 1, dtype=pl.Int64)
    return pl.DataFrame(
        {
            "lead_id": lead,
            "id": lead + "/" + number.cast(pl.String),
            "occurred_at": to_times(at),
            "client_id": pl.repeat(CLIENT, len(at), eager=True),
            "channel": pl.repeat("email", len(at), eager=True),
            "action": pl.repeat("email_sent", len(at), eager=True),
            "touch_number": number,
            "content_snapshot": pl.DataFrame({"arm": pl.Series(ARMS).gather(pl.Series(arm))})
            .select(
                pl.struct(body=pl.lit("We write to you."), template_id="arm").struct.json_encode()
            )
            .to_series(),
        }
    ).filter(pl.col("occurred_at") <= config.as_of)


def find_level(config: PropensityExperimentConfig) -> float:
    """Log odds of the middle control subject that make `base_rate` the mean of all."""
    middle = float(logit(config.base_rate))
    return float(
        brentq(
            lambda level: _mean_over_subjects(level, config.spread) - config.base_rate,
            middle - 2 * config.spread**2 - 1e-9,
            middle + 1e-9,
            xtol=1e-14,
        )
    )


def _mean_over_subjects(log_odds: float, spread: float) -> float:
    """Mean propensity of subjects whose own log odds are normal; Gauss and Hermite's quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return float(weights @ expit(log_odds + spread * points) / weights.sum())


def state_truth(config: PropensityExperimentConfig) -> pl.DataFrame:
    """Rate and lift of each arm, by touch.

    Exact but for the end: touches that are just settled have a few conversions yet to come, in all
    arms alike (a five-hundredth of the rate, nothing of the lift).

    Returns:
        arm, value; share, of the subjects that convert; true_rate, conversions over touches sent;
        true_lift, conversions over those expected at the mean of all arms by touch number.
    """
    level = find_level(config)
    won = np.array(
        [
            np.mean([_mean_over_subjects(level + np.log(one), config.spread) for one in ratios])
            for ratios in config.odds
        ]
    )
    # Of waits and gaps that both forget the past, the gap is the shorter one in this share.
    outlasts = config.wait_days / (config.wait_days + config.gap_days)
    shape = (len(ARMS), config.touches)
    sent, converting = np.zeros(shape), np.zeros(shape)
    for planned in range(1, config.touches + 1):
        alone = outlasts ** np.arange(planned) * (1.0 - outlasts)
        alone[-1] = outlasts ** (planned - 1)
        at = config.by_itself * alone + (1.0 - config.by_itself) / planned
        before = np.cumsum(at) - at
        converting[:, :planned] += np.outer(won, at) / config.touches
        sent[:, :planned] += (1.0 - np.outer(won, before)) / config.touches
    expected = (sent * (converting.sum(axis=0) / sent.sum(axis=0))).sum(axis=1)
    return pl.DataFrame(
        {
            "arm": ARMS,
            "value": ARMS,
            "share": won,
            "true_rate": converting.sum(axis=1) / sent.sum(axis=1),
            "true_lift": converting.sum(axis=1) / expected,
        }
    )
