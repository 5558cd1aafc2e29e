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
_ROUNDS = 60
_TOLERANCE = 1e-6
# A conversion follows its touch within minutes to days; half of them within about two hours.
_FASTEST, _SLOWEST = 5 * 60, 3 * DAY


@dataclass(frozen=True)
class Outcome:
    """What happened to the leads of a batch.

    Attributes:
        effects: effects planted in each client, ratios as they were used.
        base: base hazard of each client, shape (C,).
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
    relative = _relative_hazards(config, design, effects)
    target = _target_conversion(config, design)
    base = _calibrated_base(config, design, relative, target)
    hazard = np.where(design.planned, np.minimum(base[design.owner][:, None] * relative, 1.0), 0.0)
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
    deviate = ndtri(np.clip(design.client["u_base"], 1e-9, 1 - 1e-9))
    spread: Floats = expit(logit(base) + config.base_spread * deviate)
    return spread


def _relative_hazards(
    config: SyntheticConfig, design: Design, effects: list[tuple[Effect, ...]]
) -> Floats:
    """Hazard of each planned touch over the client's base hazard, shape (L, T)."""
    reference = float(np.clip(config.base_conversion, 0.001, 0.5))
    odds = _lead_effects(config, design, effects)
    # A ratio of odds becomes the ratio of hazards that gives it over the whole sequence.
    share = expit(logit(reference) + odds)
    relative = np.log1p(-share) / np.log1p(-reference)
    if config.frailty > 0:
        frailty = ndtri(np.clip(design.lead["u_frailty"], 1e-9, 1 - 1e-9))
        relative = relative * np.exp(config.frailty * frailty)
    combined: Floats = relative[:, None] * np.exp(_touch_effects(config, design, effects))
    return combined


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


def _calibrated_base(
    config: SyntheticConfig, design: Design, relative: Floats, target: Floats
) -> Floats:
    """Base hazard at which the expected conversion of each client is the target, shape (C,).

    Repeats b ← b · H(target) / H(b) with the cumulative hazard H(p) = −log(1 − p), which is
    nearly linear in b; a target out of reach (losses come first) ends at hazards of 1.
    """
    clients = len(target)
    counts = np.maximum(np.bincount(design.owner, minlength=clients), 1)
    base = -np.log1p(-np.clip(target, 0, 1 - 1e-12)) / np.mean(config.touches)
    # Certain conversion means at the first touch, before anything can be lost.
    base = np.where(target >= 1, 1e12, base)
    for _ in range(_ROUNDS):
        hazard = np.minimum(base[design.owner][:, None] * relative, 1.0) * design.planned
        probability, _ = _conversion_probability(hazard, config.dropout)
        reached = np.bincount(design.owner, probability, minlength=clients) / counts
        if np.all((np.abs(reached - target) < _TOLERANCE) | (reached == 0)):
            break
        want = -np.log1p(-np.clip(target, 0, 1 - 1e-12))
        have = -np.log1p(-np.clip(reached, 1e-300, 1 - 1e-12))
        base = np.minimum(base * np.clip(want / have, 0, 100), 1e12)
    calibrated: Floats = base
    return calibrated


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
