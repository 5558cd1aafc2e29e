"""From planned touches to what happened: hazards, conversions, losses.

At each touch a lead that is still there converts with a probability of its own: the client's base
hazard times the product of the planted multipliers. This is the discrete-time hazard model
(Singer & Willett 1993), so exposure, depletion and immortal time are what they are in life.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtri

from conversion_assets.domain.terms import SCORE_CAPS, SCORE_COMPONENTS
from conversion_assets.synthetic import catalog
from conversion_assets.synthetic.config import (
    COMPONENT_DIMENSION,
    LEAD_DIMENSIONS,
    NUMBER_DIMENSIONS,
    SEQUENCE_DIMENSION,
    TOUCH_DIMENSIONS,
    Effect,
    SyntheticConfig,
    Value,
)
from conversion_assets.synthetic.design import (
    DAY,
    SIMPSON_CTA_TYPE,
    SIMPSON_LOW_CHANNELS,
    SIMPSON_LOW_SOURCES,
    SIMPSON_RATIO,
    SIMPSON_STRATUM_RATIO,
    Design,
    Flags,
    Floats,
    Ints,
)

HOUR = 3600
# Dimensions whose values form one profile: drawn for a mixed client together, never moved.
_PROFILES = (*NUMBER_DIMENSIONS, COMPONENT_DIMENSION)
# Bisection of log odds between these ends: to 2e-13, far beyond what a simulation can show.
_FARTHEST, _HALVINGS = 50.0, 48
# Points of the curve between cumulative hazards of 0.0001 and 30; at 24 the interpolation is off
# by less than 0.1 % of a rate. One more point is so high that every lead converts at once.
_GRID, _CERTAIN = 24, 1e12
# A conversion follows its touch within minutes to days; half of them within about two hours.
_FASTEST, _SLOWEST = 5 * 60, 3 * DAY


@dataclass(frozen=True)
class Outcome:
    """What happened to the leads of a batch.

    Attributes:
        effects: effects planted in each client, ratios as they were used.
        base: hazard of a touch without effects of a lead without effects, shape (C,).
        expected: share of each client's leads expected to convert in the end, shape (C,).
        by_touch: hazard of touch t among the leads expected to get it, shape (C, T).
        probability: of each lead to convert in the end, shape (L,).
        hazard: of each planned touch, shape (L, T).
        sent: touches that were sent, shape (L, T).
        last: position of the last touch of each lead, from 0, shape (L,).
        converted: leads that converted, shape (L,).
        lost: leads lost after their last touch, shape (L,).
        ended_at: time of conversion or loss; of the last touch for others, seconds, shape (L,).
    """

    effects: list[tuple[Effect, ...]]
    base: Floats
    expected: Floats
    by_touch: Floats
    probability: Floats
    hazard: Floats
    sent: Flags
    last: Ints
    converted: Flags
    lost: Flags
    ended_at: Ints


def draw_outcome(config: SyntheticConfig, design: Design) -> Outcome:
    """Let the leads of a design convert, be lost or stay."""
    effects = [client_effects(config, int(i)) for i in design.client_numbers]
    relative = np.where(design.planned, np.exp(_touch_effects(config, design, effects)), 0.0)
    target = _target_conversion(config, design)
    odds = _lead_effects(config, design, effects)
    if config.frailty > 0:
        odds = odds + config.frailty * _deviate(design.lead["u_frailty"])
    level = _calibrated_level(target, odds, design.owner)
    base, own = _hazards_that_reach(config, design, relative, level, odds)
    hazard = np.minimum(own[:, None] * relative, 1.0)
    probability, present = _conversion_probability(hazard, config.dropout)
    counts = np.maximum(np.bincount(design.owner, minlength=len(base)), 1)
    expected = np.bincount(design.owner, probability, minlength=len(base)) / counts
    by_touch = _hazard_by_touch(design, hazard, present)
    touch, lead = design.touch, design.lead
    converts = design.planned & (touch["u_convert"] < hazard)
    drops = design.planned & ~converts & (touch["u_drop"] < config.dropout)
    width = design.planned.shape[1]
    first = _first(converts, width)
    lost_at = _first(drops, width)
    converted, lost = first < lost_at, lost_at < first
    last = np.minimum(np.minimum(first, lost_at), lead["length"] - 1)
    sent = np.arange(width)[None, :] <= last[:, None]
    last_at = np.take_along_axis(touch["at"], last[:, None], axis=1)[:, 0]
    drop_delay = np.take_along_axis(touch["u_drop_time"], last[:, None], axis=1)[:, 0]
    delay = np.exp(
        np.log(_FASTEST) + lead["u_delay"] * (np.log(_SLOWEST) - np.log(_FASTEST))
    ).astype(np.int64)
    ended_at = last_at + np.where(
        converted, delay, np.where(lost, (HOUR * (1 + 12 * drop_delay)).astype(np.int64), 0)
    )
    return Outcome(
        effects,
        base,
        expected,
        by_touch,
        probability,
        hazard,
        sent,
        last,
        converted,
        lost,
        ended_at,
    )


def client_effects(config: SyntheticConfig, index: int) -> tuple[Effect, ...]:
    """Effects planted in the client of this index."""
    if config.null:
        return ()
    if not config.mixed:
        return config.effects
    # A stream of its own: which effects a client has does not change who its leads are.
    stream = np.random.default_rng([config.seed, index, 1])
    dimensions = dict.fromkeys(effect.dimension for effect in config.effects)
    kept = {name: bool(stream.random() < config.mixed_share) for name in dimensions}
    moved = [_moved(config, effect, stream) for effect in config.effects]
    return tuple(effect for effect in moved if kept[effect.dimension])


def _moved(config: SyntheticConfig, effect: Effect, stream: np.random.Generator) -> Effect:
    uniform = stream.random()
    if effect.dimension in _PROFILES or effect.dimension == SEQUENCE_DIMENSION:
        return effect
    values: tuple[Value, ...] = {**LEAD_DIMENSIONS, **TOUCH_DIMENSIONS}.get(
        effect.dimension, tuple(config.channels)
    )
    if effect.dimension == "best_hours":
        values = tuple(range(8, 18))
    return effect.model_copy(update={"value": values[int(uniform * len(values))]})


def _first(flags: Flags, otherwise: int) -> Ints:
    return np.where(flags.any(axis=1), flags.argmax(axis=1), otherwise)


def _target_conversion(config: SyntheticConfig, design: Design) -> Floats:
    base = config.base_conversion
    if config.base_spread == 0 or base in (0.0, 1.0):
        return np.full(len(design.client_numbers), base)
    spread: Floats = expit(logit(base) + config.base_spread * _deviate(design.client["u_base"]))
    return spread


def _deviate(uniform: Floats) -> Floats:
    """Standard normal deviates of uniforms, within six standard deviations."""
    deviates: Floats = ndtri(np.clip(uniform, 1e-9, 1 - 1e-9))
    return deviates


def _table(
    effects: list[tuple[Effect, ...]], dimension: str, values: tuple[Value, ...]
) -> Floats | None:
    """Logarithm of the ratio by client and value, shape (C, V + 1); None without any effect."""
    codes = {value: code for code, value in enumerate(values)}
    table = np.zeros((len(effects), len(values) + 1))
    for row, planted in enumerate(effects):
        for effect in planted:
            if effect.dimension == dimension and effect.value in codes:
                table[row, codes[effect.value]] = np.log(effect.ratio)
    return table if table.any() else None


def _lead_codes(design: Design) -> dict[str, Ints]:
    titles, lead = catalog.TITLES, design.lead
    seniority = [catalog.SENIORITIES.index(t.seniority) for t in titles]
    function = [catalog.FUNCTIONS.index(t.function) for t in titles]
    known = catalog.CANONICAL_TITLES
    title = [known.index(t.canonical) if t.canonical else len(known) for t in titles]
    return {
        "title_rankings.seniority": np.array([*seniority, len(catalog.SENIORITIES)])[lead["title"]],
        "title_rankings.function": np.array([*function, len(catalog.FUNCTIONS)])[lead["title"]],
        "title_rankings.title": np.array([*title, len(known)])[lead["title"]],
        "industry_rankings": lead["industry"],
        "source_rankings": lead["source"],
        "country_rankings": lead["country"],
        "size_analysis.distribution": lead["bucket"],
        "timing_signals.new_role": lead["new_role"],
        "timing_signals.hiring": lead["hiring"],
        "timing_signals.funded": lead["funded"],
    }


def _lead_effects(
    config: SyntheticConfig, design: Design, effects: list[tuple[Effect, ...]]
) -> Floats:
    """Logarithm of the odds ratio of each lead, shape (L,)."""
    total = np.zeros(len(design.owner))
    for dimension, codes in _lead_codes(design).items():
        table = _table(effects, dimension, LEAD_DIMENSIONS[dimension])
        if table is not None:
            total += table[design.owner, codes]
    components = _table(effects, COMPONENT_DIMENSION, SCORE_COMPONENTS)
    if components is not None:
        for code, name in enumerate(SCORE_COMPONENTS):
            total += components[design.owner, code] * design.lead[name] / SCORE_CAPS[name]
    if "source" in config.simpson and not config.null:
        low = np.isin(
            design.lead["source"], [catalog.SOURCES.index(s) for s in SIMPSON_LOW_SOURCES]
        )
        total += np.where(low, 0.0, np.log(SIMPSON_STRATUM_RATIO))
        total += np.where(design.lead["hiring"] == 0, np.log(SIMPSON_RATIO), 0.0)
    return total


def _touch_codes(design: Design) -> dict[str, Ints]:
    touch = design.touch
    kinds = [kind for kind, _ in catalog.CTAS.values()]
    kind_codes = [
        catalog.CTA_TYPES.index(kind) if kind else len(catalog.CTA_TYPES) for kind in kinds
    ]
    return {
        "subject_patterns": touch["subject"],
        "pain_points": touch["pain"],
        "ctas.effective": touch["cta"],
        "ctas.by_type": np.array(kind_codes)[touch["cta"]],
        "angles": touch["angle"],
        "templates": touch["template"],
        "best_days": touch["weekday"],
        "best_hours": touch["hour"],
    }


def _touch_effects(
    config: SyntheticConfig, design: Design, effects: list[tuple[Effect, ...]]
) -> Floats:
    """Logarithm of the hazard ratio of each planned touch, shape (L, T)."""
    touch, owner = design.touch, design.owner[:, None]
    width = design.planned.shape[1]
    position = np.broadcast_to(np.arange(width)[None, :], design.planned.shape)
    channels = tuple(config.channels)
    first = np.broadcast_to(touch["channel"][:, :1], design.planned.shape)
    gap = np.where(position == 0, 31, np.minimum(touch["gap_days"], 31))
    total = np.zeros(design.planned.shape)
    codes: list[tuple[str, tuple[Value, ...], Ints]] = [
        *((name, TOUCH_DIMENSIONS[name], code) for name, code in _touch_codes(design).items()),
        ("touch_hazard", tuple(range(1, width + 1)), position),
        ("optimal_gaps", tuple(range(31)), gap),
        ("channel", channels, touch["channel"]),
        ("first_touch", channels, first),
    ]
    for dimension, values, code in codes:
        table = _table(effects, dimension, values)
        if table is not None:
            total += table[owner, code]
    flags = _table(effects, "personalization_lift", TOUCH_DIMENSIONS["personalization_lift"])
    if flags is not None:
        for name, ratio in zip(catalog.PERSONAL, flags.T, strict=False):
            total += ratio[owner] * touch[name]
    total += _sequence_effects(config, design, effects)
    if "channel" in config.simpson and not config.null:
        low = [channels.index(c) for c in SIMPSON_LOW_CHANNELS if c in channels]
        total += np.where(np.isin(touch["channel"], low), 0.0, np.log(SIMPSON_STRATUM_RATIO))
        own = [kind == SIMPSON_CTA_TYPE for kind, _ in catalog.CTAS.values()]
        total += np.where(np.array(own)[touch["cta"]], np.log(SIMPSON_RATIO), 0.0)
    return total


def _sequence_effects(
    config: SyntheticConfig, design: Design, effects: list[tuple[Effect, ...]]
) -> Floats:
    total = np.zeros(design.planned.shape)
    planted = {e.value for client in effects for e in client if e.dimension == SEQUENCE_DIMENSION}
    for sequence in sorted(planted, key=str):
        codes = [list(config.channels).index(str(name)) for name in sequence]  # type: ignore[union-attr]
        size = len(codes)
        if size > design.planned.shape[1]:
            continue
        table = _table(effects, SEQUENCE_DIMENSION, (sequence,))
        matches = (design.touch["channel"][:, :size] == np.array(codes)).all(axis=1)
        if table is not None:
            total[:, size - 1 :] += np.where(matches, table[design.owner, 0], 0.0)[:, None]
    return total


def _conversion_probability(hazard: Floats, dropout: float) -> tuple[Floats, Floats]:
    """Probability of each lead to convert, and of each planned touch to be sent."""
    stays = np.cumprod((1 - hazard) * (1 - dropout), axis=1)
    present = np.ones_like(hazard)
    present[:, 1:] = stays[:, :-1]
    probability: Floats = (present * hazard).sum(axis=1)
    return np.minimum(probability, 1.0), present


def _calibrated_level(target: Floats, odds: Floats, owner: Ints) -> Floats:
    """Log odds of a lead without effects that give each client its target share, shape (C,).

    Bisection on the mean of expit(level + odds), which rises with the level.
    """
    clients = len(target)
    counts = np.maximum(np.bincount(owner, minlength=clients), 1)
    low, high = np.full(clients, -_FARTHEST), np.full(clients, _FARTHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        share = np.bincount(owner, expit(middle[owner] + odds), minlength=clients) / counts
        is_low = share < target
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    level = np.where(target <= 0, -np.inf, np.where(target >= 1, np.inf, (low + high) / 2))
    return np.asarray(level)


def _hazards_that_reach(
    config: SyntheticConfig, design: Design, relative: Floats, level: Floats, odds: Floats
) -> tuple[Floats, Floats]:
    """Base hazards under which leads convert with the odds that were meant for them.

    The share of a client's plans that ends in conversion rises with the base hazard; that curve is
    computed on a grid and read backwards, so that ratios of odds hold for leads exactly although
    each touch has a hazard of its own and leads are lost in between.

    Returns:
        Base hazard of a lead without effects, shape (C,), and of each lead, shape (L,).
    """
    clients = len(level)
    counts = np.maximum(np.bincount(design.owner, minlength=clients), 1)
    size = np.bincount(design.owner, relative.sum(axis=1), minlength=clients) / counts
    steps = np.geomspace(1e-4, 30.0, _GRID)[:, None] / np.where(size > 0, size, 1.0)[None, :]
    grid = np.vstack([steps, np.full(clients, _CERTAIN)])
    curve = np.empty(grid.shape)
    for row, base in enumerate(grid):
        hazard = np.minimum(base[design.owner][:, None] * relative, 1.0)
        share, _ = _conversion_probability(hazard, config.dropout)
        curve[row] = np.bincount(design.owner, share, minlength=clients) / counts
    wanted = _log_cumulative(expit(level[design.owner] + odds))
    reached = _log_cumulative(curve)
    own = np.empty(len(odds))
    first = np.empty(clients)
    ends = np.cumsum(np.bincount(design.owner, minlength=clients))
    for row in range(clients):
        part = slice(ends[row - 1] if row else 0, ends[row])
        own[part] = np.exp(_read_back(wanted[part], reached[:, row], np.log(grid[:, row])))
        at_level = _log_cumulative(expit(level[row : row + 1]))
        first[row] = np.exp(_read_back(at_level, reached[:, row], np.log(grid[:, row])))[0]
    own = np.where(np.isneginf(wanted), 0.0, own)
    return np.where(np.isneginf(level), 0.0, first), own


def _log_cumulative(share: Floats) -> Floats:
    """Logarithm of the cumulative hazard of a share; nearly linear in that of the base hazard."""
    with np.errstate(divide="ignore"):
        result: Floats = np.log(-np.log1p(-np.minimum(share, 1 - 1e-15)))
    return result


def _read_back(wanted: Floats, reached: Floats, grid: Floats) -> Floats:
    """Grid position of each wanted value, in a straight line beyond the low end of the curve."""
    below = wanted < reached[0]
    inside: Floats = np.interp(wanted, reached, grid)
    return np.where(below, grid[0] + wanted - reached[0], inside)


def _hazard_by_touch(design: Design, hazard: Floats, present: Floats) -> Floats:
    clients, width = len(design.client_numbers), hazard.shape[1]
    exposed = present * design.planned
    result = np.zeros((clients, width))
    for position in range(width):  # touches of a plan, not rows
        events = np.bincount(
            design.owner, exposed[:, position] * hazard[:, position], minlength=clients
        )
        at_risk = np.bincount(design.owner, exposed[:, position], minlength=clients)
        result[:, position] = np.divide(events, at_risk, out=np.zeros(clients), where=at_risk > 0)
    return result
