"""The acceptance marks measured on simulated truth; each function returns what it found.

Sizes are arguments: the tests run small ones, `python -m conversion_assets_tests.recovery --full`
those that the marks speak of. A mark is never bent to what was measured.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import polars as pl
from scipy import stats

from conversion_assets.domain.terms import PatternType
from conversion_assets.synthetic.config import DEFAULT_EFFECTS, Effect, SyntheticConfig
from conversion_assets_tests.recovery.agencies import SEQUENCE, Learned, learn_agency

IS_ACT = pl.col("verdict") == "act"
COVERS_LIFT = pl.col("true_lift").is_between("lift_low", "lift_high")
COVERS_RATE = pl.col("true_rate").is_between("low", "high")
# The zones of mark 5: half hours and three quarters of an hour, both hemispheres, and none.
TWELVE_ZONES = (
    "Asia/Kolkata", "Asia/Kathmandu", "Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland",
    "Asia/Tokyo", "Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles",
    "America/St_Johns", "America/Santiago",
)  # fmt: skip
MARK_7 = (
    ("title_rankings.title", "Marketing Director", 2.0),
    ("subject_patterns", "quick_question", 1.6),
    ("best_days", "Tuesday", 1.6),
    ("best_hours", 10, 1.6),
    (SEQUENCE, ("email", "linkedin", "voice"), 2.0),
)
"""Mark 7's effects; authority is planted beside them and judged by the weights."""


@dataclass(frozen=True)
class Mark:
    """One measured figure against what is asked.

    Attributes:
        number: of the mark in the specification.
        name: what was measured.
        value: the figure.
        low: least that passes.
        high: most that passes.
        n: how many clients or cells the figure rests on.
        detail: figures by dimension or the like, for diagnosis.
    """

    number: int
    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    n: int = 0
    detail: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bounds."""
        return bool(self.low <= self.value <= self.high)


def measure_null(clients: int, leads: int, *, seed: int = 1, frailty: float = 0.0) -> list[Mark]:
    """Mark 1, second half: with no signal at all, how many clients hear "act" about anything."""
    learned = learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, null=True, frailty=frailty)
    )
    # Unknown frailty depletes: a lead's first touches truly convert more, and that is no error.
    acts = learned.cells.filter(IS_ACT, pl.col("is_null"))
    share = acts["client_id"].n_unique() / max(learned.clients, 1)
    marks = [
        Mark(1, "null clients that hear act", share, high=0.10, n=learned.clients,
             detail=_count(acts, "dimension")),
        *_measure_coverage(learned, "no signal"),
    ]  # fmt: skip
    return marks


def measure_mixed(clients: int, leads: int, *, seed: int = 2) -> list[Mark]:
    """Marks 1 to 3 over clients of which each has some effects and not others."""
    learned = learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, mixed=True, base_spread=0.4)
    )
    acts = add_falsehood(learned).filter(IS_ACT)
    false = acts.filter("is_false")
    return [
        Mark(1, "false discoveries among acts", false.height / max(acts.height, 1), high=0.12,
             n=acts.height, detail=_count(false, "dimension")),
        *_measure_coverage(learned, "mixed"),
        *_measure_errors(learned),
    ]  # fmt: skip


def add_falsehood(learned: Learned) -> pl.DataFrame:
    """Cells with is_false: what an act about the cell would be.

    In a dimension that no planted effect touches every act is false. In a touched dimension no
    value is exactly without effect (beside a good Tuesday every other day is below the base), so
    there an act is false when it points away from the true lift. Prefixes have no true lift: an
    upward act is false unless the prefix starts with a planted one or starts it.
    """
    planted: dict[str, list[list[str]]] = {}
    for effect in learned.truth["effects"]:
        if effect["dimension"] == SEQUENCE:
            planted.setdefault(effect["client_id"], []).append(effect["value"])

    def belongs(client: str, prefix: str) -> bool:
        own = prefix.split("\x1f")
        return any(own[: len(other)] == other[: len(own)] for other in planted.get(client, []))

    cells = learned.cells.with_columns(
        is_wrong_way=((pl.col("lift") > 1) != (pl.col("true_lift") > 1)).fill_null(False)
    )
    is_stranger = pl.Series(
        [
            dimension == SEQUENCE and lift > 1 and not belongs(client, value)
            for client, dimension, value, lift in cells.select(
                "client_id", "dimension", "value", "lift"
            ).iter_rows()
        ],
        dtype=pl.Boolean,
    )
    return cells.with_columns(is_false=pl.col("is_null") | pl.col("is_wrong_way") | is_stranger)


def _measure_coverage(learned: Learned, name: str) -> list[Mark]:
    cells = learned.cells.drop_nulls("true_lift")
    marks = []
    for what, covers in (("lift", COVERS_LIFT), ("rate", COVERS_RATE)):
        # Without any signal an act is wrong by definition: its coverage would say nothing new.
        selected = cells.filter(IS_ACT, ~pl.lit(value=bool(learned.truth["null"])))
        for group, rows in (("", cells), (" of act cells", selected)):
            if rows.height:
                share = rows.select(covers.mean()).item()
                low, high = (0.85, 1.0) if group else (0.88, 0.92)
                marks.append(
                    Mark(2, f"90 % intervals of the {what}{group} cover, {name}", share, low, high,
                         rows.height, _share(rows, covers))
                )  # fmt: skip
    return marks


def _measure_errors(learned: Learned) -> list[Mark]:
    marks = []
    cells = learned.cells.drop_nulls("true_rate").with_columns(
        raw=(pl.col("rate") - pl.col("true_rate")) ** 2,
        shrunk=(pl.col("shrunk_rate") - pl.col("true_rate")) ** 2,
    )
    for name, rows, high in (
        ("n < 50", cells.filter(pl.col("n") < 50), 0.75),
        ("n > 1,000", cells.filter(pl.col("n") > 1000), 1.02),
    ):
        if rows.height:
            ratio = np.sqrt(rows["shrunk"].sum() / rows["raw"].sum())
            by = rows.group_by("dimension").agg(
                ratio=(pl.col("shrunk").sum() / pl.col("raw").sum()).sqrt(), n=pl.len()
            )
            detail = {d: f"{r:.2f} of {n}" for d, r, n in by.sort("ratio").iter_rows()}
            marks.append(
                Mark(3, f"error of shrunk over raw rates, {name}", float(ratio), high=high,
                     n=rows.height, detail=detail)
            )  # fmt: skip
    return marks


def measure_weak_signal(leads: Iterable[int], *, clients: int = 6, seed: int = 3) -> list[Mark]:
    """Less data, wider intervals: mean log width of the lift's interval at each size."""
    widths = []
    for size in leads:
        learned = learn_agency(SyntheticConfig(clients=clients, leads=size, seed=seed))
        named = learned.cells.filter(pl.col("dimension").is_in(["best_days", "source_rankings"]))
        widths.append(
            named.select((pl.col("lift_high").log() - pl.col("lift_low").log()).mean()).item()
        )
    ratio = min(small / large for small, large in itertools.pairwise(widths))
    return [
        Mark(3, "interval width, fewer over more leads", ratio, low=1.0, n=clients,
             detail={str(s): f"{w:.3f}" for s, w in zip(leads, widths, strict=True)})
    ]  # fmt: skip


def measure_best_hour(
    leads: int, *, zones: tuple[str, ...] = TWELVE_ZONES, seed: int = 5
) -> list[Mark]:
    """Mark 5: the best hour of a client whose leads all live in one zone, for each zone."""
    errors = {}
    effects = (Effect(dimension="best_hours", value=10, ratio=1.6),)
    for zone in zones:
        learned = learn_agency(
            SyntheticConfig(clients=1, leads=leads, seed=seed, effects=effects, zones=(zone,),
                            base_conversion=0.15, as_of=datetime(2026, 1, 4, tzinfo=UTC))
        )  # fmt: skip
        document = learned.detection.documents["client-0001", PatternType.WHEN]
        best = int(document.best_hours[0].value)  # type: ignore[union-attr, arg-type]
        errors[zone] = min((best - 10) % 24, (10 - best) % 24)
    within = sum(e <= 1 for e in errors.values()) / len(errors)
    return [Mark(5, "zones with the best hour within one hour", within, low=1.0, n=len(zones),
                 detail={z: f"{e} h off" for z, e in errors.items()})]  # fmt: skip


def measure_reversals(clients: int, leads: int, *, seed: int = 6) -> list[Mark]:
    """Mark 6: constructed reversals flagged, effects that are the same everywhere left alone."""
    effects = tuple(e for e in DEFAULT_EFFECTS if e.dimension in ("best_days", "source_rankings"))
    simpson = learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, effects=effects,
                        simpson=frozenset({"source", "channel"}), base_conversion=0.15)
    )  # fmt: skip
    marks = []
    for effect in [e for e in simpson.truth["effects"] if e["kind"] == "simpson"][:2]:
        value = str(effect["value"]).lower()
        rows = simpson.cells.filter(
            pl.col("dimension") == effect["dimension"], pl.col("value") == value
        )
        flagged = (rows["verdict"] == "watch").mean()
        name = f"reversals over {effect['stratum']} flagged"
        marks.append(Mark(6, name, flagged, low=1.0, n=rows.height, detail=_count(rows, "verdict")))
    plain = learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, base_conversion=0.15)
    )
    certain = [
        ("source_rankings", "referral"), ("best_days", "Tuesday"), ("best_hours", "10"),
        ("subject_patterns", "quick_question"), ("pain_points", "revenue"),
        ("ctas.by_type", "time_specific"), ("title_rankings.title", "Marketing Director"),
    ]  # fmt: skip
    named = pl.DataFrame(certain, schema=["dimension", "value"], orient="row")
    rows = plain.cells.join(named, on=["dimension", "value"]).filter(pl.col("q_value") <= 0.10)
    false = rows.filter(pl.col("verdict") == "watch")
    share = false.height / rows.height
    name = "false flags on effects alike in every stratum"
    marks.append(Mark(6, name, share, high=0.05, n=rows.height, detail=_count(false, "dimension")))
    return marks


def measure_planted(clients: int, leads: int, *, seed: int = 7) -> list[Mark]:
    """Mark 7: each planted effect found as act, the right way round."""
    effects = tuple(Effect(dimension=d, value=v, ratio=r) for d, v, r in MARK_7)
    effects += (Effect(dimension="recommended_weights", value="authority", ratio=6.0),)
    learned = learn_agency(
        SyntheticConfig(
            clients=clients, leads=leads, seed=seed, effects=effects, base_conversion=0.15
        )
    )
    marks = []
    for dimension, value, _ in MARK_7:
        label = "\x1f".join(value) if isinstance(value, tuple) else str(value)
        rows = learned.cells.filter(pl.col("dimension") == dimension, pl.col("value") == label)
        found = rows.filter(IS_ACT, pl.col("lift") > 1).height / clients
        marks.append(Mark(7, f"found as act: {dimension} {label.replace(chr(31), ' > ')}", found,
                          low=0.95, n=clients, detail=_count(rows, "verdict")))  # fmt: skip
    strongest = 0
    reasons: dict[str, int] = {}
    for (_, kind), document in learned.detection.documents.items():
        if kind == PatternType.WHO:
            weights = document.recommended_weights.model_dump()  # type: ignore[union-attr]
            evaluation = document.score_evaluation  # type: ignore[union-attr]
            strongest += evaluation.recommended and max(weights, key=weights.get) == "authority"
            reasons[evaluation.reason.split(":")[0]] = (
                reasons.get(evaluation.reason.split(":")[0], 0) + 1
            )
    name = "learned weights recommended with authority first"
    detail = {reason: str(count) for reason, count in reasons.items()}
    marks.append(Mark(7, name, strongest / clients, low=0.95, n=clients, detail=detail))
    return marks


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
