"""The same questions put to two generators: what is planted in each, and learning from it.

HAZARD is the project's generator: every touch converts with a hazard of its own. PROPENSITY is
the one written for the tests: leads convert by propensity and answer one of their touches.
"""

from dataclasses import replace
from datetime import datetime

import numpy as np
import polars as pl

from conversion_assets.detectors.ledger import CADENCE
from conversion_assets.synthetic.config import (
    DEFAULT_EFFECTS,
    LEAD_DIMENSIONS,
    TOUCH_DIMENSIONS,
    Effect,
    SyntheticConfig,
)
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.recovery.agencies import (
    SEQUENCE,
    Learned,
    learn_agency,
    learn_propensity,
)
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityAgency,
    PropensityConfig,
    generate_propensity_agency,
)

HAZARD, PROPENSITY = "hazard", "propensity"
WORLDS = (HAZARD, PROPENSITY)

MARK_7: tuple[tuple[str, str | int | tuple[str, ...], float], ...] = (
    ("title_rankings.title", "Marketing Director", 2.0),
    ("subject_patterns", "quick_question", 1.6),
    ("best_days", "Tuesday", 1.6),
    ("best_hours", 10, 1.6),
    (SEQUENCE, ("email", "linkedin", "voice"), 2.0),
)
"""Mark 7's effects; authority is planted beside them and judged by the weights."""
AUTHORITY = ("recommended_weights", "authority", 6.0)
BASE = 0.15
YEAR_END = SyntheticConfig().as_of
ON_LEADS = ("title_rankings.title", SEQUENCE, "recommended_weights")

# The independent generator's effects where each client has some of them.
SOME_ODDS = {
    ("title_rankings.seniority", "director"): 2.0,
    ("source_rankings", "bought_list"): 0.5,
    ("first_touch", "linkedin"): 1.6,
    ("timing_signals.hiring", True): 1.4,
    (SEQUENCE, ("email", "linkedin", "voice")): 2.0,
}
SOME_ANSWERS = {
    ("best_days", "Tuesday"): 1.6,
    ("best_hours", 10): 1.6,
    ("subject_patterns", "quick_question"): 1.6,
    ("ctas.by_type", "direct_ask"): 1.5,
}


def learn_null(world: str, clients: int, leads: int, seed: int, *, frailty: float = 0.0) -> Learned:
    """Clients in which nothing works."""
    if world == PROPENSITY:
        return learn_propensity(PropensityConfig(clients=clients, leads=leads, seed=seed, odds={}))
    return learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, null=True, frailty=frailty)
    )


def learn_cadence(world: str, clients: int, leads: int, seed: int) -> Learned:
    """Clients in which nothing matters but how many touches came before, and the days since.

    In the other generator touch numbers matter by themselves: whoever converts does so early.
    """
    if world == PROPENSITY:
        return learn_propensity(
            PropensityConfig(clients=clients, leads=leads, seed=seed, rate=BASE, odds={})
        )
    effects = tuple(e for e in DEFAULT_EFFECTS if e.dimension in CADENCE)
    return learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, effects=effects,
                        base_conversion=BASE)
    )  # fmt: skip


def generate_null(
    world: str, clients: int, leads: int, seed: int, *, days: int, first_client: int = 0
) -> Agency | PropensityAgency:
    """Raw rows of clients in which nothing works and who share with nobody."""
    if world == PROPENSITY:
        return generate_propensity_agency(
            PropensityConfig(clients=clients, leads=leads, seed=seed, odds={}, days=days,
                             as_of=YEAR_END, first_client=first_client)
        )  # fmt: skip
    return generate_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, null=True, pool_opt_in=0.0,
                        as_of=YEAR_END, days=days, first_client=first_client)
    )  # fmt: skip


def learn_mixed(world: str, clients: int, leads: int, seed: int) -> Learned:
    """Clients of which each has some effects and not others."""
    if world == PROPENSITY:
        return learn_propensity(
            PropensityConfig(clients=clients, leads=leads, seed=seed, odds=SOME_ODDS,
                             answers=SOME_ANSWERS, mixed=True)
        )  # fmt: skip
    return learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, mixed=True, base_spread=0.4)
    )


def learn_continuous(
    world: str, clients: int, leads: int, seed: int, *, spread: float = 0.2
) -> pl.DataFrame:
    """Clients in which every value of every attribute has an effect of its own: cells with truth.

    Log ratios are normal with standard deviation `spread`, drawn anew for each client; nobody
    shares with a pool, which would be a pool of strangers.
    """
    if world == PROPENSITY:
        config = PropensityConfig(clients=clients, leads=leads, seed=seed, odds={},
                                  cell_spread=spread)  # fmt: skip
        return learn_propensity(config).cells
    rng = np.random.default_rng([seed, 3])
    values = {**LEAD_DIMENSIONS, **TOUCH_DIMENSIONS}
    # Types of a call to action are made of the calls.
    del values["ctas.by_type"]
    channels = tuple(SyntheticConfig().channels)
    values |= {"channel": channels, "first_touch": channels, "touch_hazard": tuple(range(1, 13)),
               "optimal_gaps": tuple(range(1, 8))}  # fmt: skip
    parts = []
    for client in range(clients):
        effects = tuple(
            Effect(dimension=dimension, value=value, ratio=float(np.exp(spread * deviate)))
            for dimension, own in values.items()
            for value, deviate in zip(own, rng.standard_normal(len(own)), strict=True)
        )
        config_of_one = SyntheticConfig(
            clients=1, first_client=client, leads=leads, seed=seed, effects=effects,
            pool_opt_in=0.0,
        )  # fmt: skip
        parts.append(learn_agency(config_of_one).cells)
    return pl.concat(parts)


def learn_one_zone(
    world: str, leads: int, zone: str, seed: int, as_of: datetime, days: int
) -> Learned:
    """One client whose leads all live in one zone, where 10 o'clock works 1.6 times as well."""
    if world == PROPENSITY:
        return learn_propensity(
            PropensityConfig(leads=leads, seed=seed, rate=BASE, odds={}, zones=(zone,),
                             answers={("best_hours", 10): 1.6}, as_of=as_of, days=days)
        )  # fmt: skip
    effects = (Effect(dimension="best_hours", value=10, ratio=1.6),)
    return learn_agency(
        SyntheticConfig(clients=1, leads=leads, seed=seed, effects=effects, zones=(zone,),
                        base_conversion=BASE, as_of=as_of, days=days)
    )  # fmt: skip


def learn_reversals(world: str, clients: int, leads: int, seed: int) -> Learned:
    """Clients in which hiring leads and direct asks do better in every stratum, not overall."""
    both = frozenset({"source", "channel"})
    if world == PROPENSITY:
        return learn_propensity(
            PropensityConfig(clients=clients, leads=leads, seed=seed, rate=BASE, odds={},
                             answers={("best_days", "Tuesday"): 1.6}, simpson=both)
        )  # fmt: skip
    effects = tuple(e for e in DEFAULT_EFFECTS if e.dimension in ("best_days", "source_rankings"))
    return learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, effects=effects, simpson=both,
                        base_conversion=BASE)
    )  # fmt: skip


def learn_plain(world: str, clients: int, leads: int, seed: int) -> Learned:
    """Clients with effects that are the same in every stratum."""
    if world == PROPENSITY:
        return learn_propensity(
            PropensityConfig(clients=clients, leads=leads, seed=seed, rate=BASE, odds=SOME_ODDS,
                             answers=SOME_ANSWERS)
        )  # fmt: skip
    return learn_agency(
        SyntheticConfig(clients=clients, leads=leads, seed=seed, base_conversion=BASE)
    )


CERTAIN = {
    HAZARD: (
        ("source_rankings", "referral"), ("best_days", "Tuesday"), ("best_hours", "10"),
        ("subject_patterns", "quick_question"), ("pain_points", "revenue"),
        ("ctas.by_type", "time_specific"), ("title_rankings.title", "Marketing Director"),
    ),
    PROPENSITY: tuple(
        (dimension, str(value).lower() if value is True else str(value))
        for dimension, value in (*SOME_ODDS, *SOME_ANSWERS)
        if dimension != SEQUENCE
    ),
}  # fmt: skip
"""Effects of `learn_plain` that are the same in every stratum, by world."""


def configure_planted(clients: int, leads: int, seed: int) -> SyntheticConfig:
    """Mark 7's clients in the project's generator."""
    effects = tuple(Effect(dimension=d, value=v, ratio=r) for d, v, r in (*MARK_7, AUTHORITY))
    return SyntheticConfig(
        clients=clients, leads=leads, seed=seed, effects=effects, base_conversion=BASE
    )


def configure_planted_propensity(clients: int, leads: int, seed: int) -> PropensityConfig:
    """Mark 7's clients in the other generator."""
    planted = {(d, v): r for d, v, r in (*MARK_7, AUTHORITY)}
    return PropensityConfig(
        clients=clients, leads=leads, seed=seed, rate=BASE,
        odds={key: ratio for key, ratio in planted.items() if key[0] in ON_LEADS},
        answers={key: ratio for key, ratio in planted.items() if key[0] not in ON_LEADS},
    )  # fmt: skip


def learn_planted(world: str, clients: int, leads: int, seed: int) -> Learned:
    """Clients with the effects of mark 7, authority among them."""
    if world == PROPENSITY:
        return learn_propensity(configure_planted_propensity(clients, leads, seed))
    return learn_agency(configure_planted(clients, leads, seed))


def without(config: PropensityConfig, dimension: str, value: object) -> PropensityConfig:
    """The same world with one effect taken out and nothing else moved."""
    return replace(config, without=frozenset({(dimension, value)}))
