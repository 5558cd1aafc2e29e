"""Lead scores brought up to date with leads, weights and ideal profiles.

Leads are read some thousands at a time, scored, and those whose score differs are written, each
part in a transaction of its own. Killed at any instant, what was written stays; the same call with
the same time goes on, because leads whose score is right are not written again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.errors import ConflictError, InputError
from conversion_assets.domain.ideal_profile import IdealProfile, read_profile
from conversion_assets.scoring.lead_score import compute_lead_scores
from conversion_assets.scoring.weights import choose_weights
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.scores import (
    LeadRange,
    count_leads,
    divide_leads,
    find_changed,
    load_settings,
    read_leads,
    write_scores,
)
from conversion_assets.storage.sources import open_snapshot

LEADS_PER_PART = 50_000
"""Leads in memory at once: about 0.1 GB, and the progress moves every second."""

ATTEMPTS = 5
"""Readings of one part whose leads somebody changes at the same time."""

Progress = Callable[[int, int], None]
"""Told after each part: leads looked at so far, and all of them."""


@dataclass(frozen=True)
class ScoringReport:
    """What a scoring did.

    Attributes:
        scored: Leads looked at.
        written: Those whose score was new or differed.
        sources: Clients by where their weights come from: pattern, client, default.
        faults: What is wrong with the ideal profile of a client; it was scored with the default.
    """

    scored: int
    written: int
    sources: Mapping[str, int]
    faults: Mapping[str, str]


@dataclass(frozen=True)
class _Settings:
    weights: pl.DataFrame
    profiles: Mapping[str, IdealProfile]


def score_leads(
    engine: Engine,
    client_ids: Sequence[str] | None = None,
    *,
    now: datetime,
    only_missing: bool = False,
    chunk: int = LEADS_PER_PART,
    progress: Progress | None = None,
) -> ScoringReport:
    """Score the leads of some clients with the weights in force, and store what differs.

    Leads created after `now`, deleted ones, and those with a score of a later time are left alone.

    Args:
        engine: System of record.
        client_ids: The clients; None for all that are not deleted.
        now: Time of scoring, with zone; stored with every score that is written.
        only_missing: Only leads that lack a component.
        chunk: Leads in memory at once.
        progress: See `Progress`.

    Raises:
        NotFoundError: one of the clients does not exist.
        InputError: the time has no zone, or a stored value cannot be read.
        ConflictError: the same leads were changed by others again and again.
    """
    if now.tzinfo is None:
        raise InputError(f"time {now.isoformat()} has no zone; give it one, for example +00:00")
    with open_snapshot(engine) as snapshot:
        found = load_settings(snapshot, client_ids)
        ids = found["client_id"].to_list()
        counts = count_leads(snapshot, ids, now, only_missing=only_missing)
    weights = choose_weights(found, now)
    read = {c: read_profile(text) for c, text in found.select("client_id", "ideal_profile").rows()}
    settings = _Settings(weights, {client: profile for client, (profile, _) in read.items()})
    total, scored, written = sum(counts.values()), 0, 0
    for whole in divide_leads(counts, chunk):
        part: LeadRange | None = whole
        while part is not None:
            leads, stored = _score_part(engine, part, settings, now, only_missing=only_missing)
            scored, written = scored + leads.height, written + stored
            if progress is not None:
                progress(scored, max(total, scored))
            part = _next_part(part, leads)
    return ScoringReport(
        scored=scored,
        written=written,
        sources=dict(weights["source"].value_counts().sort("source").iter_rows()),
        faults={client: fault for client, (_, fault) in read.items() if fault is not None},
    )


def count_unscored(engine: Engine, client_id: str, now: datetime) -> int:
    """Leads of a client that `score_leads` with only_missing would score."""
    with open_snapshot(engine) as snapshot:
        return sum(count_leads(snapshot, [client_id], now, only_missing=True).values())


def _next_part(part: LeadRange, leads: pl.DataFrame) -> LeadRange | None:
    if part.most is None or leads.height < part.most:
        return None
    return replace(part, after=leads["id"][-1])


def _score_part(
    engine: Engine, part: LeadRange, settings: _Settings, now: datetime, *, only_missing: bool
) -> tuple[pl.DataFrame, int]:
    """Read, score and store some leads; returns them, and how many were stored."""
    first: pl.DataFrame | None = None
    written = 0
    for _ in range(ATTEMPTS):
        with open_snapshot(engine) as snapshot:
            leads = read_leads(snapshot, part, now, only_missing=only_missing)
        first = leads if first is None else first
        scores = compute_lead_scores(leads, settings.weights, settings.profiles, now)
        changed = find_changed(leads, scores)
        stored = _write(engine, changed)
        written += stored
        if stored == changed.height:
            return first, written
        # Somebody changed some of them in between: read again, with what is new.
    raise ConflictError(
        f"leads of client {part.client_ids[0]!r} are being changed by others all the time; "
        "score them again later"
    )


def _write(engine: Engine, changed: pl.DataFrame) -> int:
    if changed.is_empty():
        return 0
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        return write_scores(connection, changed)
