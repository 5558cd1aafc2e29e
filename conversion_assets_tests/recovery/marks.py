"""The acceptance marks measured on simulated truth; each function returns what it found.

Sizes are arguments: the tests run small ones, `python -m conversion_assets_tests.recovery --full`
those that the marks speak of. A mark is never bent to what was measured. Beside ours stands what
the method of raw rates (`raw_rates.py`) makes of the same rows.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from scipy import stats

from conversion_assets.detectors import ledger
from conversion_assets.domain.terms import PatternType
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets_tests.recovery import worlds
from conversion_assets_tests.recovery.agencies import SEQUENCE, Learned, learn_agency
from conversion_assets_tests.recovery.worlds import HAZARD, MARK_7

IS_ACT = pl.col("verdict") == "act"
COVERS_LIFT = pl.col("true_lift").is_between("lift_low", "lift_high")
COVERS_RATE = pl.col("true_rate").is_between("low", "high")
# The zones of mark 5: half hours and three quarters of an hour, both hemispheres, and none.
TWELVE_ZONES = (
    "Asia/Kolkata", "Asia/Kathmandu", "Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland",
    "Asia/Tokyo", "Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles",
    "America/St_Johns", "America/Santiago",
)  # fmt: skip
# Ends and lengths in days of what is learned from: a whole year, which crosses both clock changes
# of every zone that has them, and four months around each of the two.
SEASONS = {
    "the year": (datetime(2026, 1, 4, tzinfo=UTC), 360),
    "around spring": (datetime(2025, 5, 20, tzinfo=UTC), 120),
    "around autumn": (datetime(2025, 12, 10, tzinfo=UTC), 120),
}


@dataclass(frozen=True)
class Mark:
    """One measured figure against what is asked.

    Attributes:
        number: of the mark in the specification.
        name: what was measured.
        value: the figure.
        low: least that passes.
        high: most that passes; a figure without bounds is only shown.
        n: how many clients or cells the figure rests on.
        detail: figures by dimension or the like, for diagnosis.
        world: where it was measured.
        baseline: the same figure for the method of raw rates; None where it has none.
        reason: why it is not met, where that is known.
    """

    number: int
    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    n: int = 0
    detail: dict[str, str] = field(default_factory=dict)
    world: str = HAZARD
    baseline: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bounds."""
        return bool(self.low <= self.value <= self.high)

    @property
    def is_asked(self) -> bool:
        """Whether there is a bound at all."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))


def measure_null(
    clients: int, leads: int, *, seed: int = 1, frailty: float = 0.0, world: str = HAZARD
) -> list[Mark]:
    """Mark 1, second half: with no signal at all, how many clients hear "act" about anything."""
    learned = worlds.learn_null(world, clients, leads, seed, frailty=frailty)
    where = f"{world}, frail leads" if frailty else world
    # Unknown frailty depletes: a lead's first touches truly convert more, and that is no error.
    acts = learned.cells.filter(IS_ACT, pl.col("is_null"))
    wins = learned.baseline.filter("is_win", pl.col("is_null"))
    ours, theirs = (rows["client_id"].n_unique() / max(clients, 1) for rows in (acts, wins))
    confidence = learned.baseline.group_by("client_id").agg(pl.col("confidence").max())
    return [
        Mark(1, "null clients that hear act", ours, high=0.10, n=learned.clients,
             detail=_count(acts, "dimension"), world=where, baseline=theirs),
        Mark(1, "acts per null client", acts.height / max(clients, 1), n=clients, world=where,
             baseline=wins.height / max(clients, 1),
             detail={"confidence of the baseline, median client":
                     f"{confidence['confidence'].median() or 0.0:.2f}"}),
        *measure_coverage(learned.cells, "no signal", is_null=True, world=where),
    ]  # fmt: skip


def measure_cadence(clients: int, leads: int, *, seed: int = 13, world: str = HAZARD) -> list[Mark]:
    """Mark 1 where touch numbers and gaps alone matter: how many clients hear of anything else.

    Shown beside: the same when one ledger for all is asked and no other.
    """
    learned = worlds.learn_cadence(world, clients, leads, seed)
    with patch.object(ledger, "CADENCE", ()):
        at_once = worlds.learn_cadence(world, clients, leads, seed)
    is_other = pl.col("is_null") & ~pl.col("dimension").is_in(ledger.CADENCE)
    acts, unparted = (one.cells.filter(IS_ACT) for one in (learned, at_once))
    wins = learned.baseline.filter("is_win", is_other)
    ours, before, theirs = (
        rows.filter(is_other)["client_id"].n_unique() / clients for rows in (acts, unparted, wins)
    )
    due = acts.filter(pl.col("dimension").is_in(ledger.CADENCE)).height / clients
    return [
        Mark(1, "clients with nothing but a cadence that hear another act", ours, high=0.10,
             n=clients, detail=_count(acts.filter(is_other), "dimension"), world=world,
             baseline=theirs),
        Mark(1, "the same, one ledger for all", before, n=clients, world=world),
        Mark(1, "acts about touch numbers and gaps, by client", due, n=clients, world=world),
    ]  # fmt: skip


def measure_mixed(clients: int, leads: int, *, seed: int = 2, world: str = HAZARD) -> list[Mark]:
    """Marks 1 to 3 over clients of which each has some effects and not others."""
    learned = worlds.learn_mixed(world, clients, leads, seed)
    acts = add_falsehood(learned.cells, learned.truth).filter(IS_ACT)
    false = acts.filter("is_false")
    wins = add_falsehood(learned.baseline, learned.truth).filter("is_win")
    return [
        Mark(1, "false discoveries among acts", false.height / max(acts.height, 1), high=0.12,
             n=acts.height, detail=_count(false, "dimension"), world=world,
             baseline=wins["is_false"].mean()),
        *measure_coverage(learned.cells, "mixed", world=world),
        *_measure_errors(learned, world),
    ]  # fmt: skip


def measure_continuous(
    clients: int, leads: int, *, seed: int = 8, world: str = HAZARD
) -> list[Mark]:
    """Mark 2 where no cell is without an effect."""
    cells = worlds.learn_continuous(world, clients, leads, seed)
    return measure_coverage(cells, "every cell differs", world=world)


def add_falsehood(cells: pl.DataFrame, truth: dict[str, Any]) -> pl.DataFrame:
    """Cells with is_false: what an act about the cell would be.

    In a dimension that no planted effect touches every act is false. In a touched dimension no
    value is exactly without effect (beside a good Tuesday every other day is below the base), so
    there an act is false when it points away from the true lift. Prefixes have no true lift: an
    upward act is false unless the prefix starts with a planted one or starts it.
    """
    planted: dict[str, list[list[str]]] = {}
    for effect in truth["effects"]:
        if effect["dimension"] == SEQUENCE:
            planted.setdefault(effect["client_id"], []).append(effect["value"])

    def belongs(client: str, prefix: str) -> bool:
        own = prefix.split("\x1f")
        return any(own[: len(other)] == other[: len(own)] for other in planted.get(client, []))

    judged = cells.with_columns(
        is_wrong_way=((pl.col("lift") > 1) != (pl.col("true_lift") > 1)).fill_null(False)
    )
    is_stranger = pl.Series(
        [
            dimension == SEQUENCE and lift > 1 and not belongs(client, value)
            for client, dimension, value, lift in judged.select(
                "client_id", "dimension", "value", "lift"
            ).iter_rows()
        ],
        dtype=pl.Boolean,
    )
    return judged.with_columns(is_false=pl.col("is_null") | pl.col("is_wrong_way") | is_stranger)


def measure_coverage(
    cells: pl.DataFrame, name: str, *, is_null: bool = False, world: str = HAZARD
) -> list[Mark]:
    """Mark 2 over cells with their truth; without any signal an act is wrong by definition."""
    known = cells.drop_nulls("true_lift")
    marks = []
    for what, covers in (("lift", COVERS_LIFT), ("rate", COVERS_RATE)):
        selected = known.filter(IS_ACT, ~pl.lit(value=is_null))
        for group, rows in (("", known), (" of act cells", selected)):
            if rows.height:
                share = rows.select(covers.mean()).item()
                low, high = (0.85, 1.0) if group else (0.88, 0.92)
                marks.append(
                    Mark(2, f"90 % intervals of the {what}{group} cover, {name}", share, low, high,
                         rows.height, _share(rows, covers), world)
                )  # fmt: skip
    return marks


def _measure_errors(learned: Learned, world: str) -> list[Mark]:
    marks = []
    theirs = learned.baseline.select(
        "client_id", "dimension", "value", pl.col("rate").alias("their_rate")
    )
    cells = (
        learned.cells.drop_nulls("true_rate")
        .join(theirs, on=["client_id", "dimension", "value"], how="left")
        .with_columns(
            raw=(pl.col("rate") - pl.col("true_rate")) ** 2,
            shrunk=(pl.col("shrunk_rate") - pl.col("true_rate")) ** 2,
            theirs=(pl.col("their_rate") - pl.col("true_rate")) ** 2,
        )
    )
    for name, rows, high in (
        ("n < 50", cells.filter(pl.col("n") < 50), 0.75),
        ("n > 1,000", cells.filter(pl.col("n") > 1000), 1.02),
    ):
        if rows.height:
            ratio = np.sqrt(rows["shrunk"].sum() / rows["raw"].sum())
            same = rows.drop_nulls("theirs")
            baseline = np.sqrt(same["theirs"].sum() / same["raw"].sum()) if same.height else None
            by = rows.group_by("dimension").agg(
                ratio=(pl.col("shrunk").sum() / pl.col("raw").sum()).sqrt(), n=pl.len()
            )
            detail = {d: f"{r:.2f} of {n}" for d, r, n in by.sort("ratio").iter_rows()}
            marks.append(
                Mark(3, f"error of shrunk over raw rates, {name}", float(ratio), high=high,
                     n=rows.height, detail=detail, world=world, baseline=baseline)
            )  # fmt: skip
    return marks


def measure_weak_signal(
    leads: Iterable[int], *, clients: int = 6, seed: int = 3, world: str = HAZARD
) -> list[Mark]:
    """Less data, wider intervals: mean log width of the lift's interval at each size."""
    widths = []
    for size in leads:
        learned = (
            learn_agency(SyntheticConfig(clients=clients, leads=size, seed=seed))
            if world == HAZARD
            else worlds.learn_plain(world, clients, size, seed)
        )
        named = learned.cells.filter(pl.col("dimension").is_in(["best_days", "source_rankings"]))
        widths.append(
            named.select((pl.col("lift_high").log() - pl.col("lift_low").log()).mean()).item()
        )
    ratio = min(small / large for small, large in itertools.pairwise(widths))
    return [
        Mark(3, "interval width, fewer over more leads", ratio, low=1.0, n=clients, world=world,
             detail={str(s): f"{w:.3f}" for s, w in zip(leads, widths, strict=True)})
    ]  # fmt: skip


def measure_best_hour(
    leads: int,
    *,
    zones: Sequence[str] = TWELVE_ZONES,
    seed: int = 5,
    world: str = HAZARD,
    season: str = "the year",
) -> list[Mark]:
    """Mark 5: the best hour of a client whose leads all live in one zone, for each zone."""
    as_of, days = SEASONS[season]
    errors, their_errors, detail = {}, {}, {}
    for zone in zones:
        learned = worlds.learn_one_zone(world, leads, zone, seed, as_of, days)
        ((_, document),) = [
            item for item in learned.detection.documents.items() if item[0][1] == PatternType.WHEN
        ]
        errors[zone] = _hours_off(document.best_hours[0].value)  # type: ignore[union-attr]
        hours = learned.baseline.filter(dimension="best_hours").sort("rate", "value")
        their_errors[zone] = _hours_off(hours["value"][-1])
        changes = count_clock_changes(zone, as_of - timedelta(days=days), as_of)
        detail[zone] = f"{errors[zone]} h off, {changes} clock changes"
    share, baseline = (
        sum(e <= 1 for e in found.values()) / len(found) for found in (errors, their_errors)
    )
    return [Mark(5, f"zones with the best hour within one hour, {season}", share, low=1.0,
                 n=len(zones), detail=detail, world=world, baseline=baseline)]  # fmt: skip


def _hours_off(hour: Any, truth: int = 10) -> int:
    off = (int(hour) - truth) % 24
    return min(off, 24 - off)


def count_clock_changes(zone: str, start: datetime, end: datetime) -> int:
    """Changes of a zone's offset between two moments."""
    days = pl.datetime_range(start, end, "1d", time_zone="UTC", eager=True)
    local = days.dt.convert_time_zone(zone)
    offset = local.dt.base_utc_offset() + local.dt.dst_offset()
    return int((offset.diff().drop_nulls() != timedelta(0)).sum())


def measure_reversals(
    clients: int, leads: int, *, seed: int = 6, world: str = HAZARD
) -> list[Mark]:
    """Mark 6: constructed reversals flagged, effects that are the same everywhere left alone."""
    simpson = worlds.learn_reversals(world, clients, leads, seed)
    marks = []
    for effect in [e for e in simpson.truth["effects"] if e["kind"] == "simpson"][:2]:
        cell = {"dimension": effect["dimension"], "value": str(effect["value"]).lower()}
        rows, theirs = simpson.cells.filter(**cell), simpson.baseline.filter(**cell)
        flagged = (rows["verdict"] == "watch").sum() / clients
        name = f"reversals over {effect['stratum']} flagged"
        # It flags nothing; what it calls a loser here wins in every stratum.
        detail = {**_count(rows, "verdict"),
                  "baseline: losers": str((theirs["lift"] < 1).sum())}  # fmt: skip
        marks.append(Mark(6, name, flagged, low=1.0, n=rows.height, detail=detail, world=world,
                          baseline=0.0))  # fmt: skip
    plain = worlds.learn_plain(world, clients, leads, seed)
    named = pl.DataFrame(worlds.CERTAIN[world], schema=["dimension", "value"], orient="row")
    rows = plain.cells.join(named, on=["dimension", "value"]).filter(pl.col("q_value") <= 0.10)
    false = rows.filter(pl.col("verdict") == "watch")
    share = false.height / max(rows.height, 1)
    name = "false flags on effects alike in every stratum"
    marks.append(Mark(6, name, share, high=0.05, n=rows.height, detail=_count(false, "dimension"),
                      world=world))  # fmt: skip
    return marks


def measure_planted(clients: int, leads: int, *, seed: int = 7, world: str = HAZARD) -> list[Mark]:
    """Mark 7: each planted effect found as act, the right way round."""
    learned = worlds.learn_planted(world, clients, leads, seed)
    marks = []
    for dimension, value, _ in MARK_7:
        label = "\x1f".join(value) if isinstance(value, tuple) else str(value)
        cell = {"dimension": dimension, "value": label}
        rows = learned.cells.filter(**cell)
        found = rows.filter(IS_ACT, pl.col("lift") > 1).height / clients
        won = learned.baseline.filter(**cell).filter("is_win").height / clients
        name = f"found as act: {dimension} {label.replace(chr(31), ' > ')}"
        marks.append(Mark(7, name, found, low=0.95, n=clients, detail=_count(rows, "verdict"),
                          world=world, baseline=won))  # fmt: skip
    marks.append(_measure_weights(learned, clients, world))
    marks += _measure_best(learned, clients, world)
    return marks


def _measure_weights(learned: Learned, clients: int, world: str) -> Mark:
    strongest = 0
    reasons: dict[str, int] = {}
    for (_, kind), document in learned.detection.documents.items():
        if kind == PatternType.WHO:
            weights = document.recommended_weights.model_dump()  # type: ignore[union-attr]
            evaluation = document.score_evaluation  # type: ignore[union-attr]
            strongest += evaluation.recommended and max(weights, key=weights.get) == "authority"
            reason = evaluation.reason.split(":")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
    name = "learned weights recommended with authority first"
    detail = {reason: str(count) for reason, count in reasons.items()}
    return Mark(7, name, strongest / clients, low=0.95, n=clients, detail=detail, world=world)


def _measure_best(learned: Learned, clients: int, world: str) -> list[Mark]:
    """Whether the day and the hour named first are the planted ones; leads live in many zones."""
    right = {"weekday": 0, "hour within one": 0}
    for (_, kind), document in learned.detection.documents.items():
        if kind == PatternType.WHEN:
            right["weekday"] += document.best_days[0].value == "Tuesday"  # type: ignore[union-attr]
            hour = document.best_hours[0].value  # type: ignore[union-attr]
            right["hour within one"] += _hours_off(hour) <= 1
    best = (
        learned.baseline.sort("rate", "value")
        .group_by("client_id", "dimension")
        .agg(pl.col("value").last())
    )
    theirs = {
        "weekday": (best.filter(dimension="best_days")["value"] == "Tuesday").sum(),
        "hour within one": sum(
            _hours_off(hour) <= 1 for hour in best.filter(dimension="best_hours")["value"]
        ),
    }
    return [
        Mark(7, f"best {what} named rightly", found / clients, n=clients, world=world,
             baseline=theirs[what] / clients)
        for what, found in right.items()
    ]  # fmt: skip


def is_plausible(mark: Mark, probability: float = 0.001) -> bool:
    """Whether a share measured on few cases is compatible with its bounds.

    For small runs: the mark is refuted only when a binomial share at the bound would be that far
    off with less than this probability.
    """
    if mark.passed:
        return True
    k = round(mark.value * mark.n)
    if mark.value > mark.high:
        return bool(stats.binom.sf(k - 1, mark.n, mark.high) >= probability)
    return bool(stats.binom.cdf(k, mark.n, mark.low) >= probability)


def _count(rows: pl.DataFrame, column: str) -> dict[str, str]:
    counted = rows.group_by(column).len().sort(["len", column], descending=[True, False])
    return {str(name): str(count) for name, count in counted.iter_rows()}


def _share(rows: pl.DataFrame, expression: pl.Expr) -> dict[str, str]:
    by = rows.group_by("dimension").agg(share=expression.mean(), n=pl.len()).sort("share")
    return {d: f"{s:.3f} of {n}" for d, s, n in by.iter_rows()}
