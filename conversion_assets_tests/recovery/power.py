"""Mark 7 in small clients: what is found, beside what somebody could find who knows everything.

The oracle knows the generator: which cell may have an effect, in which direction, and the
probability of every counted row to convert if that effect were none. It needs no estimate of the
base, no strata and no halves, and asks one question by the count of conversions, which is the most
powerful test of a ratio. "The same false-discovery level" can be read in two ways:

- in the ledger: its p-value stands in the place of ours among the other hypotheses of the client,
  and counts when its q-value is at most 0.10, in the whole ledger and in the one without touch
  numbers and gaps, as ours has to be. Whoever uses it on all cells keeps the share of false
  discoveries at 10 %, as we do.
- alone: its p-value is at most 0.10. That is a level for one hypothesis that somebody named
  beforehand; used on every cell of a client it would call thirty false ones.

Both are measured; the mark is the first (docs/decisions/tests-and-ledger.md). Beside them stands a
learner that knows which cell, which direction and that no stratum matters, but has to estimate the
base from the same rows: nobody who learns from a client's data alone can do better.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from scipy import stats
from scipy.special import expit, logit

from conversion_assets import learning
from conversion_assets.detectors.ledger import CADENCE
from conversion_assets.detectors.population import Population, select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets.features import Features, build_features
from conversion_assets.stats.multiplicity import (
    adjust_benjamini_hochberg,
    adjust_directions,
    compute_tail_probabilities,
    weigh_directions,
)
from conversion_assets.synthetic.generator import generate_agency
from conversion_assets_tests.recovery import worlds
from conversion_assets_tests.recovery.agencies import SEQUENCE
from conversion_assets_tests.recovery.marks import Mark
from conversion_assets_tests.recovery.propensity_generator import generate_propensity_agency
from conversion_assets_tests.recovery.worlds import HAZARD, MARK_7, PROPENSITY

SETTINGS = LearningConfig()
# Clients held in memory at once; each effect of the other generator needs its rows a second time.
BATCH = 25


@dataclass(frozen=True)
class _World:
    """Features of some clients and, for each effect, every row's probability without it."""

    features: Features
    members: pl.DataFrame
    without: dict[str, tuple[pl.DataFrame, pl.DataFrame]]
    as_of: datetime


def measure_power(
    clients: int, leads: int, *, seed: int = 9, world: str = HAZARD, with_pool: bool = True
) -> list[Mark]:
    """Power over that of the oracle, for each reading, and where ours is lost.

    Without a pool no client shares what it knows: each has nothing but its own rows.
    """
    parts = []
    for first in range(0, clients, BATCH):
        count = min(BATCH, clients - first)
        make = _make_propensity if world == PROPENSITY else _make_hazard
        made = make(first, count, leads, seed)
        if not with_pool:
            made = replace(made, members=made.members.with_columns(pool_opt_in=pl.lit(value=False)))
        parts += _compare(made)
    table = pl.DataFrame(parts)
    ours, ledger, weighted, alone, learner, ours_in_q = (
        float(table[name].sum())
        for name in ("found", "oracle", "oracle_weighted", "oracle_alone", "learner", "in_q")
    )
    lost = Counter(table.filter("oracle", ~pl.col("found"))["stage"].to_list())
    by = table.group_by("dimension").agg(pl.col("found", "oracle", "learner", "oracle_alone").sum())
    detail = {
        **{d: f"{f} found, oracle {o} and learner {w} in the ledger, oracle {a} alone of {clients}"
           for d, f, o, w, a in by.sort("dimension").iter_rows()},
        **{f"lost: {stage}": str(count) for stage, count in lost.most_common()},
        "q at most 0.10, whatever the interval": f"{ours_in_q:.0f}",
        "conversions of the window that are old enough to count": f"{table['counted'].mean():.3f}",
        "found where the oracle's ledger is silent":
            str(table.filter("found", ~pl.col("oracle")).height),
    }  # fmt: skip
    size = f"{leads:,} leads" + ("" if with_pool else ", no pool")
    reason = "; ".join(f"{count} lost to {stage}" for stage, count in lost.most_common(3))
    return [
        Mark(7, f"power over an oracle's in the ledger, {size}", ours / max(ledger, 1), low=0.85,
             n=table.height, detail=detail, world=world, reason=reason),
        Mark(7, f"power over an oracle's in our weighted ledger, {size}", ours / max(weighted, 1),
             n=table.height, world=world),
        Mark(7, f"power over a learner's of the base, {size}", ours / max(learner, 1),
             n=table.height, world=world),
        Mark(7, f"power over an oracle's alone at 0.10, {size}", ours / max(alone, 1),
             n=table.height, world=world),
    ]  # fmt: skip


def _make_hazard(first: int, count: int, leads: int, seed: int) -> _World:
    config = worlds.configure_planted(count, leads, seed).model_copy(update={"first_client": first})
    agency = generate_agency(config)
    chances = agency.latent_leads.select("lead_id", p="probability")
    hazards = agency.latent_touches.select("activity_id", p="hazard")
    without = {
        dimension: (
            chances.with_columns(
                p=pl.Series(expit(logit(chances["p"].to_numpy()) - np.log(ratio)))
            ),
            hazards.with_columns(p=pl.col("p") / ratio),
        )
        for dimension, _, ratio in MARK_7
    }
    features = build_features(agency.clients, agency.leads, agency.activities)
    members = agency.clients.select(client_id="id", pool_opt_in="pool_opt_in")
    return _World(features, members, without, config.as_of)


def _make_propensity(first: int, count: int, leads: int, seed: int) -> _World:
    config = replace(worlds.configure_planted_propensity(count, leads, seed), first_client=first)
    agency = generate_propensity_agency(config)
    without = {}
    for dimension, value, _ in MARK_7:
        other = generate_propensity_agency(worlds.without(config, dimension, value))
        without[dimension] = (
            other.latent_leads.select("lead_id", p="chance"),
            other.latent_touches.select("activity_id", p="hazard"),
        )
    features = build_features(agency.clients, agency.leads, agency.activities)
    members = agency.clients.select(client_id="id", pool_opt_in="pool_opt_in")
    return _World(features, members, without, config.as_of)


@contextmanager
def _watch_ledgers() -> Iterator[list[pl.DataFrame]]:
    """Every ledger that detection judges, with client ids: documents show q-values alone."""
    seen: list[pl.DataFrame] = []
    real = learning.apply_forward_record

    def watch(found: pl.DataFrame, record: pl.DataFrame, client_ids: Sequence[str]) -> pl.DataFrame:
        names = pl.DataFrame(
            {"client": range(len(client_ids)), "client_id": client_ids},
            schema={"client": found.schema["client"], "client_id": pl.String},
        )
        seen.append(found.join(names, on="client"))
        return real(found, record, client_ids)

    with patch.object(learning, "apply_forward_record", watch):
        yield seen


def _compare(world: _World) -> list[dict[str, Any]]:
    """One row per client and effect: who finds it, and where ours was lost."""
    with _watch_ledgers() as seen:
        learning.detect_patterns(
            world.features.leads, world.features.touches, world.members, as_of=world.as_of
        )
    ledgers = pl.concat(seen).partition_by("client_id", as_dict=True)
    ids = world.members["client_id"].to_list()
    population = select_population(
        world.features.leads, world.features.touches, ids, world.as_of, SETTINGS
    )
    known = world.features.touches.filter(
        "is_converting", pl.col("occurred_at") > world.as_of - timedelta(days=SETTINGS.window_days)
    )
    counted = population.touches["is_outcome"].sum() / max(known.height, 1)
    rows = []
    for dimension, value, _ in MARK_7:
        label = "\x1f".join(value) if isinstance(value, tuple) else str(value)
        tails = _ask_oracle(population, world, dimension, value)
        halves = _count_sequences(population, label) if dimension == SEQUENCE else {}
        for place, client_id in enumerate(population.client_ids):
            found = ledgers.get((client_id,))
            judged = _judge(found, dimension, label, tails[place], halves.get(place))
            rows.append(
                {"client_id": client_id, "dimension": dimension, "counted": counted, **judged}
            )
    return rows


def _ask_oracle(population: Population, world: _World, dimension: str, value: Any) -> Any:
    """Upper mid-p of the conversions in the cell under no effect of it, shape (clients,)."""
    chances, hazards = world.without[dimension]
    if dimension == "title_rankings.title":
        rows = population.leads.filter(pl.col("title") == value).join(chances, on="lead_id")
        rows = rows.select("client", "p", y="is_converted")
    else:
        is_in = {
            "subject_patterns": pl.col(f"subject__{value}"),
            "best_days": pl.col("local_weekday") == 2,
            "best_hours": pl.col("local_hour") == value,
            SEQUENCE: pl.col("touch_number") >= 3,
        }[dimension]
        touches = population.touches
        if dimension == SEQUENCE:
            touches = touches.join(_list_carriers(world.features, value), on="lead_id", how="semi")
        rows = touches.filter(is_in).join(hazards, on="activity_id")
        rows = rows.select("client", "p", y="is_outcome")
    p = pl.col("p")
    sums = (
        pl.DataFrame({"client": range(len(population.client_ids))}, schema={"client": pl.Int32})
        .join(
            rows.group_by("client").agg(
                k=pl.col("y").sum().cast(pl.Float64), mean=p.sum(), variance=(p * (1 - p)).sum(),
                third=(p * (1 - p) * (1 - 2 * p)).sum(),
            ),
            on="client",
            how="left",
        )
        .sort("client")
        .fill_null(0.0)
    )  # fmt: skip
    k, *moments = (sums[name].to_numpy() for name in ("k", "mean", "variance", "third"))
    upper, _ = compute_tail_probabilities(k, *moments)
    beyond, _ = compute_tail_probabilities(k + 1.0, *moments)
    return (upper + beyond) / 2


def _list_carriers(features: Features, sequence: tuple[str, ...]) -> pl.DataFrame:
    paths = (
        features.touches.filter(pl.col("touch_number") <= len(sequence))
        .sort("lead_id", "touch_number")
        .group_by("lead_id")
        .agg(pl.col("channel").str.join(">"))
    )
    return paths.filter(pl.col("channel") == ">".join(sequence)).select("lead_id")


def _count_sequences(population: Population, label: str) -> dict[int, dict[str, Any]]:
    """The plain table of a prefix over all leads, both halves, by client index."""
    own = pl.col("prefix") == label
    counted = (
        population.sequences.filter(length=label.count("\x1f") + 1)
        .group_by("client")
        .agg(
            n=own.sum(),
            k=(own & pl.col("is_outcome")).sum(),
            base_n=pl.len(),
            base_k=pl.col("is_outcome").sum(),
        )
    )
    return {row["client"]: row for row in counted.iter_rows(named=True)}


def _judge(
    ledger: pl.DataFrame | None,
    dimension: str,
    label: str,
    tail: float,
    whole: dict[str, Any] | None,
) -> dict[str, Any]:
    """Whether we and the oracle find one cell, and at which step we lost it."""
    row = (
        None if ledger is None
        else next(ledger.filter(dimension=dimension, value=label).iter_rows(named=True), None)
    )  # fmt: skip
    ledgers: list[pl.DataFrame] = []
    if ledger is not None:
        is_cell = (pl.col("dimension") == dimension) & (pl.col("value") == label)
        tested = ledger.filter("is_tested", ~is_cell)
        # None of mark 7's effects is one of cadence, so each has to convince in both.
        ledgers = [tested, tested.filter(~pl.col("dimension").is_in(CADENCE))]
    others = [one["p_value"].to_numpy() for one in ledgers]
    weighted = row is not None and all(_is_called_weighted(tail, row, one) for one in ledgers)
    plain = whole if dimension == SEQUENCE else row
    found = row is not None and row["verdict"] == "act" and row["lift"] > 1
    passes = row is not None and row["q_value"] <= SETTINGS.act_q and row["lift"] > 1
    return {
        "found": found,
        "in_q": passes,
        "oracle": _is_called(tail, others),
        "oracle_weighted": weighted,
        "learner": plain is not None and _is_called(_test_upwards(plain), others),
        "oracle_alone": bool(tail <= SETTINGS.act_q),
        "stage": _find_stage(row, others, passes=passes, is_sequence=dimension == SEQUENCE),
    }


def _is_called(p: float, ledgers: Sequence[Any]) -> bool:
    """Whether a p-value is called among the others of each ledger; alone where there is none."""
    for others in ledgers or [np.empty(0)]:
        together = np.append(others, p)
        q = adjust_benjamini_hochberg(together, np.zeros(len(together), np.int64))
        if q[-1] > SETTINGS.act_q:
            return False
    return True


def _is_called_weighted(tail: float, row: dict[str, Any], others: pl.DataFrame) -> bool:
    """The oracle in our own ledger: our weights, those of both directions on the true one."""
    cells = pl.concat([others, pl.DataFrame([row], schema=others.schema)])
    up, down, is_asked_down = (
        *weigh_directions(cells["pool_lift"].fill_null(np.nan).to_numpy()),
        ~cells["only_winners"].to_numpy(),
    )
    down = np.where(is_asked_down, down, 0.0)
    upper, lower = (cells[name].to_numpy().copy() for name in ("upper_p", "lower_p"))
    upper[-1], up[-1], down[-1] = tail, up[-1] + down[-1], 0.0
    q = adjust_directions(upper, lower, (up, down), np.zeros(upper.size, np.int64))
    return bool(q[-1] <= SETTINGS.act_q)


def _find_stage(
    row: dict[str, Any] | None, others: Sequence[Any], *, passes: bool, is_sequence: bool
) -> str:
    """First step at which a cell that the oracle calls fails to become an act."""
    if row is None:
        return "a half too small to be tested" if is_sequence else "no such cell"
    if not row["is_tested"]:
        return "too small to be tested"
    if row["q_value"] <= SETTINGS.act_q and not row["is_confirmed"]:
        return "not shown by both halves"
    if row["verdict"] == "watch" and row["q_value"] <= SETTINGS.act_q:
        return "an explanation" if row["explained_by"] else "a reversal"
    if passes:
        return "the interval of the lift"
    if row["lift"] > 1 and _is_called(row["p_value"] / 2, others):
        return "testing both sides"
    if _is_called(_test_upwards(row), others):
        return "holding strata fixed"
    return "a base that is estimated, the cell in it"


def _test_upwards(row: dict[str, Any]) -> float:
    """Upper mid-p of a cell in one plain table, by the exact distribution."""
    law = stats.hypergeom(row["base_n"], row["base_k"], row["n"])
    return float(law.sf(row["k"]) + law.pmf(row["k"]) / 2)
