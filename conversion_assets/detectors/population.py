"""Who is looked at: window, maturity and risk set, one rule for all four detectors.

Leads count when they were created in the window and have had time to convert: they are older than
the client's 90th percentile of time to conversion. A younger lead is left out whatever became of
it. Leaving out only the young *open* ones would keep the quick winners of the last weeks and drop
everybody they should be compared with (see docs/decisions/maturity.md).

Touches count while their lead is at risk: made in the window, not after the lead's conversion, and
old enough for their own outcome to be known.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.codes import Codes, Ints, combine, encode, split
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import SCORE_COMPONENTS, NoteKind

# Touch numbers from here on share a stratum: few leads get that far, and their hazards are alike.
LAST_TOUCH_STRATUM = 8
LONGEST_SEQUENCE = 6
SEQUENCE_SEPARATOR = "\x1f"
"""Joins channels of a prefix; a control character, which no channel name contains."""

Rows = Literal["leads", "touches", "sequences"]
"""The frames of a population that are counted."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Population:
    """Rows that the detectors may count, as of one moment.

    Attributes:
        client_ids: Ids in the order of their rows; a row's `client` is the index into this list.
        as_of: Nothing later is known.
        leads: One row per mature lead: client, is_converted (outcome), month, channel (of the
            first touch), and the attributes of `lead_features`.
        touches: One row per touch at risk: client, is_outcome, month, channel, touch_stratum, and
            the columns of `touch_features`.
        sequences: One row per mature lead and prefix length it reached: client, lead_id, length,
            prefix, is_outcome, is_later_half, source, month; by length, client and lead.
        followed: One row per lead of the window for time to conversion: client, duration_days,
            is_converted.
        summary: One row per client in `client_ids` order: n, k, maturity_days.
        notes: client, kind, reason, rows, of (rows looked at): what was left out and why.
    """

    client_ids: list[str]
    as_of: datetime
    leads: pl.DataFrame
    touches: pl.DataFrame
    sequences: pl.DataFrame
    followed: pl.DataFrame
    summary: pl.DataFrame
    notes: pl.DataFrame
    # Not carried over by `replace`: what was made of another frame would be wrong.
    _made: dict[tuple[str, str], Any] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _locks: defaultdict[tuple[str, str], Lock] = field(
        init=False, repr=False, compare=False, default_factory=lambda: defaultdict(Lock)
    )

    def frame(self, rows: Rows) -> pl.DataFrame:
        """One of the frames that are counted, by name."""
        return {"leads": self.leads, "touches": self.touches, "sequences": self.sequences}[rows]

    def clients(self, rows: Rows) -> NDArray[np.int64]:
        """Client index of each row."""
        return self.once(rows, "client index", lambda f: f["client"].cast(pl.Int64).to_numpy())

    def is_true(self, rows: Rows, name: str) -> NDArray[np.bool_]:
        """A Boolean column, null as false."""
        return self.once(rows, f"truth {name}", lambda f: f[name].fill_null(False).to_numpy())

    def choose(self, rows: Rows, condition: pl.Expr) -> NDArray[np.int64] | slice:
        """Places of the rows that meet a condition, null as false; a slice where all do."""
        needed = set(condition.meta.root_names())
        if not needed:
            return slice(None)

        def find(frame: pl.DataFrame) -> NDArray[np.int64] | slice:
            chosen = frame.select(needed).select(w=condition.fill_null(False))["w"]
            return slice(None) if chosen.all() else np.flatnonzero(chosen.to_numpy())

        return self.once(rows, f"places where {condition}", find)

    def combine(self, rows: Rows, names: Sequence[str]) -> tuple[Ints, int]:
        """Client and some columns of each row as one number."""
        client = (self.clients(rows), len(self.client_ids))
        coded = [self.encode(rows, name) for name in names]
        return self.once(
            rows,
            f"number of {', '.join(names)}",
            lambda _: combine([client, *((one.codes, one.radix) for one in coded)]),
        )

    def encode(self, rows: Rows, name: str, bins: pl.Expr | None = None) -> Codes:
        """A column in codes.

        Args:
            rows: The frame.
            name: A column of it, or the name of what `bins` makes.
            bins: How the column is made of others; a name always stands for the same.
        """
        if bins is None:
            return self.once(rows, f"codes {name}", lambda f: encode(f[name]))
        made = bins.alias(name)
        return self.once(
            rows,
            f"codes of bins {name}",
            lambda f: encode(f.select(set(bins.meta.root_names())).select(made)[name]),
        )

    def once(self, rows: Rows, key: str, make: Callable[[pl.DataFrame], Result]) -> Result:
        """What is made of a frame, made once: some seventy counts share a dozen columns."""
        with self._locks[rows, key]:
            if (rows, key) not in self._made:
                self._made[rows, key] = make(self.frame(rows))
            made: Result = self._made[rows, key]
        return made


def find_lead_starts(touches: pl.DataFrame) -> NDArray[np.int64]:
    """Places of the rows at which another lead begins; the touches of a lead stand together."""
    return find_starts(touches, ["lead_id", "client"])


def find_starts(rows: pl.DataFrame, names: Sequence[str]) -> NDArray[np.int64]:
    """Places of the rows that differ from the row above in some of the columns, the first too."""
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in names)
    is_first = rows.select(first=differs | (pl.int_range(pl.len()) == 0))["first"]
    return np.flatnonzero(is_first.to_numpy())


def select_population(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    client_ids: Sequence[str],
    as_of: datetime,
    config: LearningConfig,
    *,
    window: tuple[datetime, datetime] | None = None,
    keeps_young: bool = False,
) -> Population:
    """Cut feature frames down to what was known and settled at `as_of`.

    Args:
        leads: `lead_features`, any order.
        touches: `touch_features`, any order.
        client_ids: Clients to keep; a client without rows is kept with n = 0.
        as_of: Aware time; later facts are unknown.
        config: Window and maturity quantile.
        window: Count only leads created and touches made in (start, end]. Outcomes and maturity
            stay those known at `as_of`, learned from the whole window of `config`: a few weeks
            hold too few conversions to learn them from. Not given: (as_of - window_days, as_of].
        keeps_young: Keep leads and touches that are too young for their outcome to be known, for
            questions that do not depend on it; `is_settled` says which are not. The summary
            counts them too, and there are no sequences.

    Returns:
        The population; frames are sorted by client and a key of their own. Clients are in the
        order in which the rows list them, so that no row has to be moved, or else in the order of
        their ids.
    """
    ids = _order_clients(leads, touches, client_ids)
    index = pl.DataFrame({"client": range(len(ids))}, schema={"client": pl.Int32})
    start = as_of - timedelta(days=config.window_days)
    counted_from, counted_to = window or (start, as_of)
    known_leads = _know_leads(leads, ids, as_of)
    known_touches = _know_touches(touches, ids, as_of)
    lead_maturity = _compute_maturity(
        known_leads.filter(pl.col("is_converted") & (pl.col("created_at") > start)),
        pl.col("converted_at") - pl.col("created_at"),
        "maturity_days",
        config.maturity_quantile,
    )
    touch_maturity = _compute_maturity(
        known_touches.filter(pl.col("is_outcome") & (pl.col("occurred_at") > start)),
        pl.col("lead_converted_at") - pl.col("occurred_at"),
        "touch_maturity_days",
        config.maturity_quantile,
    )
    joined = known_leads.filter(
        (pl.col("created_at") > counted_from) & (pl.col("created_at") <= counted_to)
    ).join(lead_maturity, on="client", how="left")
    is_mature = pl.col("age_days") >= pl.col("maturity_days").fill_null(0.0)
    chosen = joined.with_columns(is_settled=is_mature) if keeps_young else joined.filter(is_mature)
    kept = _add_first_channel(chosen, known_touches)
    at_risk, touch_notes = _select_touches(
        known_touches,
        (pl.col("occurred_at") > counted_from) & (pl.col("occurred_at") <= counted_to),
        touch_maturity,
        as_of,
        keeps_young=keeps_young,
    )
    # Of no leads there are no sequences.
    of_sequences = kept.clear() if keeps_young else kept
    summary = (
        index.join(
            kept.group_by("client").agg(
                n=pl.len().cast(pl.Int64), k=pl.col("is_converted").sum().cast(pl.Int64)
            ),
            on="client",
            how="left",
        )
        .join(lead_maturity, on="client", how="left")
        .with_columns(pl.col("n", "k").fill_null(0))
        .sort("client")
    )
    notes = pl.concat(
        [
            _count_note(
                joined,
                ~is_mature,
                NoteKind.YOUNG_LEAD,
                "lead too young for its outcome to be known",
            ),
            *touch_notes,
        ]
    )
    return Population(
        client_ids=ids,
        as_of=as_of,
        leads=kept,
        touches=at_risk,
        sequences=_build_sequences(of_sequences, known_touches),
        followed=joined.select(
            "client",
            "lead_id",
            "is_converted",
            duration_days=pl.when("is_converted")
            .then(_days(pl.col("converted_at") - pl.col("created_at")))
            .otherwise("age_days"),
        ),
        summary=summary,
        notes=notes.filter(pl.col("rows") > 0).sort("client", "reason"),
    )


def _days(duration: pl.Expr) -> pl.Expr:
    return duration.dt.total_microseconds() / 86_400e6


def _month(column: pl.Series) -> pl.Series:
    """Months since the year 0, by way of the few days there are: calendars are slow to compute."""
    day = encode(column.cast(pl.Date).to_physical())
    days = day.values.cast(pl.Date)
    return (days.dt.year() * 12 + days.dt.month()).cast(pl.Int32).gather(day.codes)


def _order_clients(
    leads: pl.DataFrame, touches: pl.DataFrame, client_ids: Sequence[str]
) -> list[str]:
    """Clients as both frames list them, those without leads last; sorted where they do not."""
    wanted = sorted(set(client_ids))
    listed, of_touches = (
        rows["client_id"].rle().struct.field("value") for rows in (leads, touches)
    )
    if len(listed) > listed.n_unique() or len(of_touches) > of_touches.n_unique():
        return wanted
    if not of_touches.equals(listed.filter(listed.is_in(of_touches.implode()))):
        return wanted
    known = listed.drop_nulls().to_list()
    return [*(c for c in known if c in set(wanted)), *sorted(set(wanted) - set(known))]


def _own(rows: pl.DataFrame, ids: list[str], is_known: pl.Expr, key: list[str]) -> pl.DataFrame:
    """Rows of some clients that were known by then, with their client's index, in order.

    The frames are some sixty columns wide. A store hands them out in order and complete, and then
    not a row is moved.
    """
    runs = rows["client_id"].rle().struct.unnest()
    index_of = runs["value"].replace_strict(
        pl.Series(ids, dtype=pl.String), range(len(ids)), default=None, return_dtype=pl.Int32
    )
    place = np.repeat(np.arange(runs.height), runs["len"].to_numpy())
    numbered = rows.with_columns(client=index_of.gather(place))
    wanted = numbered.select(w=pl.col("client").is_not_null() & is_known)["w"]
    found = numbered if wanted.all() else numbered.filter(wanted)
    return found if _is_in_order(found, key) else found.sort(key)


def _is_in_order(rows: pl.DataFrame, key: list[str]) -> bool:
    """Whether rows already ascend by their key.

    Rows with the same key but for its last column are few runs, so only the runs' texts are
    compared for their order.
    """
    *names, last = key
    starts = find_starts(rows, names)
    ascends = rows.select(a=(pl.col(last) > pl.col(last).shift(1)).fill_null(value=False))["a"]
    follows = ascends.to_numpy().copy()
    follows[starts] = True
    if not follows.all():
        return False
    runs = rows.select(names)[starts]
    ascend, ties = pl.lit(value=False), pl.lit(value=True)
    for name in names:
        ascend |= ties & (pl.col(name) > pl.col(name).shift(1))
        ties &= pl.col(name) == pl.col(name).shift(1)
    return bool(runs.lazy().select(ascend.slice(1).all()).collect().item())


def _know_leads(leads: pl.DataFrame, ids: list[str], as_of: datetime) -> pl.DataFrame:
    """Leads created by as_of, with their outcome as it was known then."""
    known = _own(leads, ids, pl.col("created_at") <= as_of, ["client", "lead_id"])
    return known.with_columns(
        is_converted=pl.col("converted_at").is_not_null() & (pl.col("converted_at") <= as_of),
        age_days=_days(pl.lit(as_of) - pl.col("created_at")),
        month=_month(known["created_at"]),
        # A score given later is a fact from after as_of; one without a time counts.
        **{
            name: pl.when((pl.col("scored_at") <= as_of).fill_null(True)).then(name)
            for name in ("tier", *SCORE_COMPONENTS)
        },
    )


def _know_touches(touches: pl.DataFrame, ids: list[str], as_of: datetime) -> pl.DataFrame:
    """Touches made by as_of, with their outcome as it was known then."""
    known = _own(
        touches, ids, pl.col("occurred_at") <= as_of, ["client", "lead_id", "touch_number"]
    )
    return known.with_columns(
        is_outcome=(
            pl.col("is_converting")
            & pl.col("lead_converted_at").is_not_null()
            & (pl.col("lead_converted_at") <= as_of)
        ),
        month=_month(known["occurred_at"]),
        tier=pl.when((pl.col("lead_scored_at") <= as_of).fill_null(True)).then("tier"),
        touch_stratum=pl.col("touch_number").clip(1, LAST_TOUCH_STRATUM).cast(pl.Int32),
    )


def _compute_maturity(
    rows: pl.DataFrame, delay: pl.Expr, name: str, quantile: float
) -> pl.DataFrame:
    """Each client's quantile of a delay in days, never below 0."""
    return rows.group_by("client").agg(
        _days(delay).clip(lower_bound=0).quantile(quantile, "higher").alias(name)
    )


def _add_first_channel(leads: pl.DataFrame, touches: pl.DataFrame) -> pl.DataFrame:
    # A lead that converted before anyone wrote to it owes nothing to the channel of a later touch.
    is_first = (pl.col("touch_number") == 1) & ~pl.col("is_after_conversion")
    narrow = touches.select("client", "lead_id", "channel", "touch_number", "is_after_conversion")
    first = narrow.filter(is_first).drop("is_after_conversion")
    return leads.join(first, on=["client", "lead_id"], how="left", maintain_order="left")


def _select_touches(
    touches: pl.DataFrame,
    is_in_window: pl.Expr,
    maturity: pl.DataFrame,
    as_of: datetime,
    *,
    keeps_young: bool,
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Touches of the window that are at risk and settled, and notes on those left out."""
    age = _days(pl.lit(as_of) - pl.col("occurred_at"))
    judged = touches.select(
        "client",
        pl.col("client")
        .replace_strict(
            maturity["client"],
            maturity["touch_maturity_days"],
            default=None,
            return_dtype=pl.Float64,
        )
        .alias("touch_maturity_days"),
        is_in_window.alias("is_in_window"),
        age.alias("age_days"),
        is_over=pl.col("is_after_conversion"),
        # A conversion later than as_of, or none yet, is no contradiction: not known.
        contradicts=pl.col("booking_mismatch")
        & (pl.col("lead_converted_at") <= as_of).fill_null(False),
        lacks_zone=pl.col("local_hour").is_null(),
    ).with_columns(is_settled=pl.col("age_days") >= pl.col("touch_maturity_days").fill_null(0.0))
    is_over = pl.col("is_over")
    kinds = [
        (is_over, NoteKind.TOUCH_AFTER_CONVERSION, "touch after the lead's conversion"),
        (
            ~is_over & ~pl.col("is_settled"),
            NoteKind.YOUNG_TOUCH,
            "touch too young for its outcome to be known",
        ),
        (
            pl.col("contradicts"),
            NoteKind.BOOKING_CONTRADICTS_TIMES,
            "led_to_booking contradicts the times (counted by the times)",
        ),
        (
            pl.col("lacks_zone"),
            NoteKind.NO_LOCAL_TIME,
            "touch without a time zone (not in WHEN)",
        ),
    ]
    in_window = judged.filter("is_in_window")
    notes = [_count_note(in_window, noted, kind, reason) for noted, kind, reason in kinds]
    is_old_enough = pl.lit(value=True) if keeps_young else pl.col("is_settled")
    kept = judged.select(kept=pl.col("is_in_window") & ~is_over & is_old_enough)["kept"]
    told = ["touch_maturity_days", *(["is_settled"] if keeps_young else [])]
    return touches.with_columns(judged[told].get_columns()).filter(kept), notes


def _count_note(rows: pl.DataFrame, is_noted: pl.Expr, kind: NoteKind, reason: str) -> pl.DataFrame:
    """How many of each client's rows a note is about."""
    return (
        rows.group_by("client")
        .agg(rows=is_noted.sum().cast(pl.Int64), of=pl.len().cast(pl.Int64))
        .select(
            pl.col("client").cast(pl.Int32),
            "rows",
            "of",
            kind=pl.lit(str(kind)),
            reason=pl.lit(reason),
        )
    )


def _build_sequences(leads: pl.DataFrame, touches: pl.DataFrame) -> pl.DataFrame:
    """Channel prefixes that each mature lead reached before its conversion.

    Touches are in order, so the touch before a lead's second is the row above: each prefix is the
    one of that row and one channel more, as a number.
    """
    middle = leads.group_by("client").agg(middle=pl.col("created_at").sort().gather(pl.len() // 2))
    halves = leads.join(
        middle.with_columns(pl.col("middle").list.first()), on="client", how="left"
    ).select(
        "client",
        "lead_id",
        "is_converted",
        "source",
        "month",
        is_later_half=pl.col("created_at") >= pl.col("middle"),
    )
    # Narrowed first: a filter copies every column it is given.
    steps = (
        touches.select("client", "lead_id", "channel", "touch_number", "is_after_conversion")
        .filter((pl.col("touch_number") <= LONGEST_SEQUENCE) & ~pl.col("is_after_conversion"))
        .select("client", "lead_id", "channel")
    )
    starts = find_lead_starts(steps)
    lead = np.repeat(np.arange(starts.size), np.diff(np.append(starts, steps.height)))
    step = np.arange(steps.height) - starts[lead] + 1
    place = steps[starts].join(
        halves.select("client", "lead_id").with_row_index("place"),
        on=["client", "lead_id"],
        how="left",
        maintain_order="left",
    )["place"].cast(pl.Int64).fill_null(-1).to_numpy()  # fmt: skip
    channels = encode(steps["channel"])
    prefix, names = channels.codes, channels.values
    parts: list[pl.DataFrame] = []
    for length in range(2, LONGEST_SEQUENCE + 1):
        here = np.flatnonzero(step == length)
        longer, _ = combine(
            [(prefix[here - 1], len(names)), (channels.codes[here], channels.radix)]
        )
        distinct, code = np.unique(longer, return_inverse=True)
        before, last = split(distinct, [len(names), channels.radix])
        names = pl.DataFrame(
            {"before": names.gather(before), "last": channels.values.gather(last)}
        ).select(path=pl.concat_str("before", "last", separator=SEQUENCE_SEPARATOR))["path"]
        prefix = np.zeros(step.size, dtype=np.int64)
        prefix[here] = code
        row = place[lead[here]]
        reached = row >= 0
        whose: pl.DataFrame = halves[row[reached]]
        parts.append(
            whose.select(
                "client",
                "lead_id",
                length=pl.lit(length, pl.Int32),
                prefix=names.gather(code[reached]),
                is_outcome="is_converted",
                is_later_half="is_later_half",
                source="source",
                month="month",
            )
        )
    return pl.concat(parts)
