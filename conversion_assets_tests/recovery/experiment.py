"""A randomised experiment with a known effect, as rows that any client could import.

Subjects are leads. Each is drawn to one of three arms and gets one touch, which carries the arm:
as its template, or as its channel. Who is in which arm depends on nothing else, so the difference
between arms is the effect. One treatment does nothing; the other works twice as far for half of
the subjects as for the rest, and by a known factor on average.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

import numpy as np
import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.notebook import learn_patterns
from conversion_assets.stats.intervals import compute_beta_interval

TIME = pl.Datetime("us", "UTC")
DAY = 86_400.0
ARMS = ("control", "blue", "green")
CHANNELS = {"control": "mail", "blue": "sms", "green": "email"}
"""Channel of each arm where the channel is what was randomised."""
COUNTRIES = ("France", "Japan", "Kenya", "Peru")
ZONES = ("Europe/Paris", "Asia/Tokyo", "Africa/Nairobi", "America/Lima")
CLIENT = "experiment"


@dataclass(frozen=True)
class Experiment:
    """Canonical raw rows and the truth.

    Attributes:
        truth: arm, value, and true_rate and true_lift of each arm; the lift is over the mean of
            all arms, as a document's is.
    """

    leads: pl.DataFrame
    activities: pl.DataFrame
    truth: pl.DataFrame


class Design(Protocol):
    """An experiment that can be drawn as often as one likes, by another seed each time."""

    @property
    def seed(self) -> int:
        """Of the draw."""

    @property
    def as_of(self) -> datetime:
        """Nothing later is known."""

    @property
    def world(self) -> str:
        """Name of the mechanism."""

    @property
    def is_channel(self) -> bool:
        """Whether the first touch's channel is the arm; else its template is."""

    def draw(self) -> Experiment:
        """The rows and the truth."""


@dataclass(frozen=True)
class ExperimentConfig:
    """What to generate.

    Attributes:
        subjects: leads, a third in each arm on average.
        base_rate: share of the control arm that converts.
        blue: factor on the rate of every subject of the first treatment.
        green: factors of the second treatment, for returning and for new subjects; half are each.
        carried_by: what the touch carries the arm as.
        days: over which the subjects arrive.
        wait_days: mean time from the touch to the conversion.
    """

    subjects: int = 64_000
    base_rate: float = 0.006
    blue: float = 1.0
    green: tuple[float, float] = (1.6, 1.1)
    carried_by: Literal["template", "channel"] = "template"
    seed: int = 1
    days: int = 300
    wait_days: float = 10.0
    as_of: datetime = datetime(2026, 1, 4, tzinfo=UTC)
    world: str = "experiment"

    @property
    def is_channel(self) -> bool:
        """Whether the first touch's channel is the arm."""
        return self.carried_by == "channel"

    def draw(self) -> Experiment:
        """See `generate_experiment`."""
        return generate_experiment(self)


def generate_experiment(config: ExperimentConfig) -> Experiment:
    """Draw subjects, arms and outcomes; all conversions known by `as_of` are stamped."""
    rng = np.random.default_rng([config.seed, 64])
    n = config.subjects
    arm = rng.integers(len(ARMS), size=n)
    is_returning = rng.random(n) < 0.5
    place = rng.integers(len(ZONES), size=n)
    green = np.where(is_returning, config.green[0], config.green[1])
    factor = np.choose(arm, [np.ones(n), np.full(n, config.blue), green])
    will = rng.random(n) < config.base_rate * factor
    created = config.as_of.timestamp() - rng.random(n) * config.days * DAY
    touched = created + rng.random(n) * DAY
    converted = touched + rng.gamma(2.0, config.wait_days / 2.0, n) * DAY
    return Experiment(
        leads=make_leads(
            config.as_of, is_returning, place, created, np.where(will, converted, np.inf)
        ),
        activities=_activity_rows(config, arm, touched),
        truth=_state_truth(config),
    )


def make_leads(
    as_of: datetime,
    is_returning: np.ndarray,
    place: np.ndarray,
    created: np.ndarray,
    converted: np.ndarray,
) -> pl.DataFrame:
    """Raw leads: subjects with their place, times in seconds; a conversion after as_of is none."""
    is_known = converted <= as_of.timestamp()
    updated = np.where(is_known, converted, created)
    return pl.DataFrame(
        {
            "id": name_subjects(len(created)),
            "client_id": CLIENT,
            "country": pl.Series(COUNTRIES).gather(pl.Series(place)),
            "timezone": pl.Series(ZONES).gather(pl.Series(place)),
            "source": pl.Series(["new", "returning"]).gather(pl.Series(is_returning.astype(int))),
            "status": pl.Series(["in_sequence", "converted"]).gather(
                pl.Series(is_known.astype(int))
            ),
            "created_at": to_times(created),
            "updated_at": to_times(updated),
        }
    ).with_columns(converted_at=pl.when(pl.Series(is_known)).then("updated_at"))


def _activity_rows(config: ExperimentConfig, arm: np.ndarray, touched: np.ndarray) -> pl.DataFrame:
    names = pl.Series(ARMS).gather(pl.Series(arm))
    channel = names.replace_strict(CHANNELS) if config.is_channel else pl.repeat("email", len(arm))
    lead = name_subjects(config.subjects)
    frame = pl.DataFrame(
        {
            "lead_id": lead,
            "id": lead + "/1",
            "arm": names,
            "occurred_at": to_times(touched),
            "client_id": pl.repeat(CLIENT, len(arm), eager=True),
        }
    ).with_columns(channel=channel)
    template = pl.lit("one for all") if config.is_channel else pl.col("arm")
    return (
        frame.filter(pl.col("occurred_at") <= config.as_of)
        .with_columns(
            action=pl.col("channel") + "_sent",
            touch_number=pl.lit(1, pl.Int64),
            content_snapshot=pl.struct(
                body=pl.lit("We write to you."), template_id=template
            ).struct.json_encode(),
        )
        .drop("arm")
    )


def _state_truth(config: ExperimentConfig) -> pl.DataFrame:
    factors = np.array([1.0, config.blue, float(np.mean(config.green))])
    return pl.DataFrame(
        {
            "arm": ARMS,
            "value": [CHANNELS[arm] if config.is_channel else arm for arm in ARMS],
            "true_rate": config.base_rate * factors,
            "true_lift": factors / factors.mean(),
        }
    )


def name_subjects(count: int) -> pl.Series:
    """Ids of leads."""
    return "lead-" + pl.Series(np.arange(count)).cast(pl.String).str.zfill(6)


def to_times(seconds: np.ndarray) -> pl.Series:
    """Aware times from seconds since 1970."""
    return (pl.Series(seconds) * 1e6).cast(pl.Int64).cast(TIME)


def learn_experiment(config: Design) -> pl.DataFrame:
    """Learn the experiment as any client's rows, and put the truth beside what is said of the arms.

    Returns:
        One row per arm: seed, arm, the columns of the tidy table, own_low and own_high (Jeffreys'
        interval of the rate from the document's n and k alone), raw_lift (k / n over that of all
        arms), true_rate, true_lift.
    """
    experiment = config.draw()
    learned = learn_patterns(experiment.leads, experiment.activities, as_of=config.as_of)
    is_arm = (
        pl.col("path") == "first_touch"
        if config.is_channel
        else pl.col("path").str.starts_with("templates")
    )
    arms = learned.to_polars().filter(is_arm).join(experiment.truth, on="value").sort("arm")
    k, n = (arms[name].to_numpy().astype(float) for name in ("k", "n"))
    low, high = compute_beta_interval(k + 0.5, n - k + 0.5, LearningConfig().credible_mass)
    return arms.with_columns(
        seed=pl.lit(config.seed),
        own_low=pl.Series(low),
        own_high=pl.Series(high),
        raw_lift=pl.col("rate") / (pl.col("k").sum() / pl.col("n").sum()),
    )


def summarize_experiments(arms: pl.DataFrame) -> pl.DataFrame:
    """Coverage and error over repeated experiments, one row per arm.

    Returns:
        arm, true_lift, mean_lift, rmse and raw_rmse (of the lift, shrunk and raw), covers_own,
        covers_rate, covers_lift (shares of experiments), overstates (the interval of the lift
        lies farther from 1 than the truth), acts.
    """
    true = pl.col("true_lift")
    beyond = pl.when(true > 1).then(pl.col("lift_low") > true).otherwise(pl.col("lift_high") < true)
    return arms.group_by("arm", "true_lift").agg(
        mean_lift=pl.col("lift").mean(),
        rmse=((pl.col("lift") - true) ** 2).mean().sqrt(),
        raw_rmse=((pl.col("raw_lift") - true) ** 2).mean().sqrt(),
        covers_own=pl.col("true_rate").is_between("own_low", "own_high").mean(),
        covers_rate=pl.col("true_rate").is_between("rate_low", "rate_high").mean(),
        covers_lift=true.is_between("lift_low", "lift_high").mean(),
        overstates=beyond.mean(),
        acts=(pl.col("verdict") == "act").mean(),
    ).sort("arm")  # fmt: skip
