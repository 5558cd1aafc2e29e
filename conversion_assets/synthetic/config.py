"""What to generate: sizes, shares and the effects to plant, in one frozen record."""

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from conversion_assets.domain.terms import SCORE_COMPONENTS, SIZE_BUCKETS, WEEKDAYS
from conversion_assets.synthetic import catalog

Scale = Literal["odds", "hazard"]
Value = bool | int | str | tuple[str, ...]

LEAD_DIMENSIONS: dict[str, tuple[Value, ...]] = {
    "title_rankings.seniority": catalog.SENIORITIES,
    "title_rankings.function": catalog.FUNCTIONS,
    "title_rankings.title": catalog.CANONICAL_TITLES,
    "industry_rankings": catalog.INDUSTRIES,
    "source_rankings": catalog.SOURCES,
    "country_rankings": catalog.COUNTRIES,
    "size_analysis.distribution": tuple(label for label, _ in SIZE_BUCKETS),
    "timing_signals.new_role": (True,),
    "timing_signals.hiring": (True,),
    "timing_signals.funded": (True,),
}
"""Attributes of a lead whose values may carry an effect on the odds of its conversion."""
TOUCH_DIMENSIONS: dict[str, tuple[Value, ...]] = {
    "subject_patterns": catalog.SUBJECT_PATTERNS,
    "pain_points": tuple(name for name in catalog.PAIN_POINTS if name),
    "ctas.effective": tuple(name for name in catalog.CTAS if name),
    "ctas.by_type": catalog.CTA_TYPES,
    "angles": tuple(name for name in catalog.ANGLES if name),
    "personalization_lift": catalog.PERSONAL,
    "templates": tuple(catalog.TEMPLATES),
    "best_days": WEEKDAYS,
    "best_hours": tuple(range(24)),
}
"""Attributes of a touch whose values may carry an effect on its hazard."""
COMPONENT_DIMENSION = "recommended_weights"
"""Score components: the ratio is that of the odds at the component's cap over those at 0."""
NUMBER_DIMENSIONS = ("touch_hazard", "optimal_gaps")
"""Touch number from 1, and whole days since the previous touch: profiles of several effects."""
CHANNEL_DIMENSIONS = ("channel", "first_touch")
SEQUENCE_DIMENSION = "winning_sequences"
"""A prefix of channels; the ratio holds from the touch that completes it."""

_PATTERN_OF = {
    **dict.fromkeys([*LEAD_DIMENSIONS, COMPONENT_DIMENSION], "who"),
    **dict.fromkeys(list(TOUCH_DIMENSIONS)[:7], "what"),
    **dict.fromkeys(["best_days", "best_hours", *NUMBER_DIMENSIONS], "when"),
    **dict.fromkeys([*CHANNEL_DIMENSIONS, SEQUENCE_DIMENSION], "how"),
}


class Effect(BaseModel):
    """One planted effect.

    Attributes:
        dimension: place in the pattern documents, as in `title_rankings.seniority`.
        value: the value in that place that carries the effect.
        ratio: of the lead's odds, or of the touch's hazard, against values without effect.

    Example:
        >>> Effect(dimension="best_days", value="Tuesday", ratio=1.6).scale
        'hazard'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: str
    value: Value
    ratio: float = Field(gt=0, le=1000)

    @property
    def pattern(self) -> str:
        """Pattern type whose document has the dimension."""
        return _PATTERN_OF[self.dimension]

    @property
    def scale(self) -> Scale:
        """What the ratio is a ratio of."""
        is_lead = self.dimension in LEAD_DIMENSIONS or self.dimension == COMPONENT_DIMENSION
        return "odds" if is_lead else "hazard"

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.dimension not in _PATTERN_OF:
            raise ValueError(f"dimension {self.dimension!r} is none of {', '.join(_PATTERN_OF)}")
        known = {**LEAD_DIMENSIONS, **TOUCH_DIMENSIONS, COMPONENT_DIMENSION: SCORE_COMPONENTS}
        values = known.get(self.dimension)
        if values is not None and self.value not in values:
            allowed = ", ".join(map(str, values))
            raise ValueError(f"{self.dimension} has no value {self.value!r}; it has {allowed}")
        if self.dimension in NUMBER_DIMENSIONS and not isinstance(self.value, int):
            raise ValueError(f"the value of {self.dimension} is a whole number")
        if self.dimension == SEQUENCE_DIMENSION and not isinstance(self.value, tuple):
            raise ValueError(f"the value of {self.dimension} is a list of channels")
        return self


# Rising to the fourth touch, then falling: no single best touch, and the last ones are the worst.
_TOUCH_PROFILE = (0.6, 0.9, 1.2, 1.4, 1.3, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5)
_GAP_PROFILE = {1: 0.6, 2: 1.0, 3: 1.5, 4: 1.0, 5: 0.8, 6: 0.7, 7: 0.6}

DEFAULT_EFFECTS: tuple[Effect, ...] = (
    Effect(dimension="title_rankings.title", value="Marketing Director", ratio=2.0),
    Effect(dimension="source_rankings", value="referral", ratio=1.6),
    Effect(dimension=COMPONENT_DIMENSION, value="authority", ratio=6.0),
    Effect(dimension=COMPONENT_DIMENSION, value="data_quality", ratio=1.5),
    Effect(dimension="subject_patterns", value="quick_question", ratio=1.6),
    Effect(dimension="pain_points", value="revenue", ratio=1.6),
    Effect(dimension="ctas.by_type", value="time_specific", ratio=1.5),
    Effect(dimension="best_days", value="Tuesday", ratio=1.6),
    Effect(dimension="best_hours", value=10, ratio=1.6),
    *(
        Effect(dimension="touch_hazard", value=number, ratio=ratio)
        for number, ratio in enumerate(_TOUCH_PROFILE, start=1)
    ),
    *(Effect(dimension="optimal_gaps", value=gap, ratio=r) for gap, r in _GAP_PROFILE.items()),
    Effect(dimension=SEQUENCE_DIMENSION, value=("email", "linkedin", "voice"), ratio=2.0),
)
"""Effects planted unless told otherwise: the acceptance mark's, and a touch and a gap profile."""


class SyntheticConfig(BaseModel):
    """What to generate. The same record gives the same bytes.

    Attributes:
        clients: number of clients.
        first_client: index of the first; client i is the same in whichever range it is generated.
        leads: leads per client, or their median when `size_spread` is above 0.
        size_spread: standard deviation of the logarithm of the number of leads of a client.
        seed: of all random numbers.
        null: every planted ratio becomes 1; attributes, sequences and texts stay what they were.
        mixed: each client gets each dimension's effects with probability `mixed_share`, on values
            of its own.
        base_conversion: expected share of a client's leads that convert in the end.
        base_spread: standard deviation of the logit of that share over clients.
        frailty: standard deviation of the log odds of a lead, of unknown cause.
        touches: fewest and most planned touches of a lead.
        effects: what to plant.
        sequence_share: share of leads whose first channels are made those of a planted sequence.
        simpson: reversals to build in. "source": hiring leads convert more within every source
            and less overall; "channel": direct calls to action likewise within every channel.
        zones: IANA zones of leads and clients.
        channels: channel to share of touches; a channel without a known action is sent as
            `NAME_sent`.
        dropout: probability that a lead is lost after a touch that did not convert.
        open_share: share of leads that stay open when their sequence has ended.
        missing: share of missing titles, industries, signals, lead zones and contents.
        outside_hours: share of touches sent outside 8 to 18 o'clock local time.
        booking_share: share of conversions that come with a meeting_booked activity.
        pool_opt_in: share of clients that share with the pool.
        with_text: write contents; without them the outcomes are the same.
        as_of: nothing later than this is known.
        include_future: keep what is later than `as_of`.
        days: leads are created in this many days before `as_of`.

    Example:
        >>> SyntheticConfig(clients=2, leads=100).without("best_days").effects[0].ratio
        2.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients: int = Field(8, ge=0, le=100_000)
    first_client: int = Field(0, ge=0, le=100_000)
    leads: int = Field(1000, ge=0, le=5_000_000)
    size_spread: float = Field(0.0, ge=0, le=2)
    seed: int = Field(20260104, ge=0)
    null: bool = False
    mixed: bool = False
    mixed_share: float = Field(0.5, ge=0, le=1)
    base_conversion: float = Field(0.12, ge=0, le=1)
    base_spread: float = Field(0.0, ge=0, le=2)
    frailty: float = Field(0.0, ge=0, le=3)
    touches: tuple[int, int] = (8, 12)
    effects: tuple[Effect, ...] = DEFAULT_EFFECTS
    sequence_share: float = Field(0.05, ge=0, le=1)
    simpson: frozenset[Literal["source", "channel"]] = frozenset()
    zones: tuple[str, ...] = Field(tuple(catalog.ZONES), min_length=1)
    channels: dict[str, float] = {
        "email": 0.45,
        "linkedin": 0.20,
        "voice": 0.15,
        "sms": 0.12,
        "mail": 0.08,
    }
    dropout: float = Field(0.04, ge=0, le=1)
    open_share: float = Field(0.25, ge=0, le=1)
    missing: float = Field(0.03, ge=0, le=1)
    outside_hours: float = Field(0.08, ge=0, le=1)
    booking_share: float = Field(0.4, ge=0, le=1)
    pool_opt_in: float = Field(0.7, ge=0, le=1)
    with_text: bool = True
    as_of: AwareDatetime = datetime(2026, 1, 4, tzinfo=UTC)
    include_future: bool = False
    days: int = Field(400, ge=1, le=3650)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        low, high = self.touches
        if not 1 <= low <= high <= 100:
            raise ValueError(f"touches {self.touches} should be two rising numbers from 1 to 100")
        if not self.channels or min(self.channels.values()) < 0 or not sum(self.channels.values()):
            raise ValueError("channels needs a name with a share above 0, and none below")
        for effect in self.effects:
            named = effect.value if isinstance(effect.value, tuple) else (effect.value,)
            if effect.pattern == "how" and not set(named) <= set(self.channels):
                raise ValueError(f"{effect.dimension} {effect.value!r} names an unknown channel")
        return self

    def without(self, *dimensions: str) -> "SyntheticConfig":
        """The same, with no effect planted in these dimensions."""
        kept = tuple(e for e in self.effects if e.dimension not in dimensions)
        return self.model_copy(update={"effects": kept})

    def only(self, *dimensions: str) -> "SyntheticConfig":
        """The same, with effects planted in these dimensions alone."""
        kept = tuple(e for e in self.effects if e.dimension in dimensions)
        return self.model_copy(update={"effects": kept})
