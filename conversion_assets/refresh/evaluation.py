"""Evaluate what is stored: the record so far, and a replay of the last weeks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.domain.patterns import AnyPattern, Claim
from conversion_assets.domain.terms import PatternType
from conversion_assets.evaluation.backtest import Backtest, run_backtest, summarize_forecasts
from conversion_assets.evaluation.drift import find_drift
from conversion_assets.evaluation.explain import Explanation, explain_change, find_version
from conversion_assets.evaluation.forward import build_record, forget_later
from conversion_assets.learning import CODE_VERSION, Detection, detect_patterns, list_claims
from conversion_assets.refresh.forward import look_back
from conversion_assets.refresh.patterns import read_pool
from conversion_assets.refresh.surveys import RECENT_DAYS
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.forecasts import read_forecasts
from conversion_assets.storage.patterns import PatternRepository


@dataclass(frozen=True)
class Evaluation:
    """The forward record of what was learned, and of what a replay would have learned.

    Attributes:
        as_of: Nothing later counted.
        record: Claims of this home with what became of them, as `build_record` gives it.
        summary: How this home's forecasts did, as `summarize_forecasts` gives it.
        backtest: The replay; None when no weeks were asked for.
        drift: The last `RECENT_DAYS` against the rest of the learning window, `find_drift`.
    """

    as_of: datetime
    record: pl.DataFrame
    summary: pl.DataFrame
    backtest: Backtest | None
    drift: pl.DataFrame


def evaluate_clients(
    engine: Engine,
    store: FeatureStore,
    *,
    client_ids: Sequence[str],
    as_of: datetime,
    weeks: int,
    config: LearningConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Grade what is due and replay the last weeks; nothing is stored.

    Args:
        engine: System of record.
        store: Features.
        client_ids: Clients; all when empty.
        as_of: Nothing later counts.
        weeks: Refreshes to replay; 0 for none.
        config: Thresholds.
        progress: Told the refreshes done and their number.

    Raises:
        NotFoundError: a client does not exist, or nothing was ever learned from.
    """
    clients = read_pool(engine)
    chosen = choose_known(clients, client_ids)
    members = clients.filter("pool_opt_in")["client_id"].to_list()
    leads, touches, _ = store.read_features(sorted({*members, *chosen}))
    state = look_back(engine, leads, touches, chosen, as_of=as_of, config=config)
    replay = None
    if weeks:
        # The last documents of each client and type, as the live refresh finds in the history.
        latest: dict[tuple[str, PatternType], AnyPattern] = {}

        def detect(moment: datetime, known: pl.DataFrame) -> Detection:
            earlier: dict[str, list[tuple[PatternType, Claim]]] = {}
            for (client, _), document in latest.items():
                earlier.setdefault(client, []).extend(list_claims([document]))
            found = detect_patterns(
                leads,
                touches,
                clients,
                as_of=moment,
                config=config,
                client_ids=chosen,
                earlier=earlier,
                forecasts=known,
            )
            latest.update(found.documents)
            return found

        replay = run_backtest(
            leads,
            touches,
            as_of=as_of,
            weeks=weeks,
            detect=detect,
            config=config,
            progress=progress,
        )
    recent = as_of - timedelta(days=RECENT_DAYS)
    drift = find_drift(
        leads,
        touches,
        chosen,
        old=(as_of - timedelta(days=max(config.window_days, 2 * RECENT_DAYS)), recent),
        new=(recent, as_of),
        as_of=as_of,
        config=config,
    )
    return Evaluation(
        as_of=as_of,
        record=build_record(state.known, as_of, config),
        summary=summarize_forecasts(state.known),
        backtest=replay,
        drift=drift,
    )


def choose_known(clients: pl.DataFrame, client_ids: Sequence[str]) -> list[str]:
    """The chosen clients, or all.

    Raises:
        NotFoundError: one of them does not exist.
    """
    known = clients["client_id"].to_list()
    for client_id in client_ids:
        if client_id not in known:
            raise NotFoundError(f"there is no client {client_id!r}")
    return sorted(set(client_ids)) or known


@dataclass(frozen=True)
class Difference:
    """What changed between two stored versions of a client's patterns.

    Attributes:
        earlier: Moment of the version started from.
        later: Moment of the version arrived at.
        explanation: The change in steps.
        drift: Rows that came in between against those learned from before, `find_drift`.
    """

    earlier: datetime
    later: datetime
    explanation: Explanation
    drift: pl.DataFrame


def explain_client(
    engine: Engine,
    store: FeatureStore,
    client_id: str,
    *,
    start: datetime,
    end: datetime,
    config: LearningConfig,
) -> Difference:
    """Explain the change between the versions in force at two moments; nothing is stored.

    Raises:
        NotFoundError: unknown client, or nothing was in force at one of the moments.
        InputError: both moments name the same version, or are not in order.
    """
    repository = PatternRepository(engine)
    earlier, later = (find_version(repository.in_force(client_id, at)) for at in (start, end))
    if earlier.as_of >= later.as_of:
        raise InputError(
            f"the version in force at {start.isoformat()} is of {earlier.as_of.isoformat()}, the"
            f" one at {end.isoformat()} of {later.as_of.isoformat()}: --from must name an earlier"
            " version than --to"
        )
    clients = read_pool(engine)
    members = clients.filter("pool_opt_in")["client_id"].to_list()
    leads, touches, _ = store.read_features(sorted({*members, client_id}))

    written = read_forecasts(engine, [client_id])

    def learn(
        leads: pl.DataFrame,
        touches: pl.DataFrame,
        as_of: datetime,
        settings: LearningConfig,
        said_before: datetime,
    ) -> list[AnyPattern]:
        found = detect_patterns(
            leads,
            touches,
            clients,
            as_of=as_of,
            config=settings,
            client_ids=[client_id],
            earlier=repository.claims_before([client_id], said_before),
            forecasts=forget_later(written, said_before),
        )
        return list(found.documents.values())

    explanation = explain_change(
        leads,
        touches,
        client_id=client_id,
        earlier=earlier,
        later=later,
        learn=learn,
        code_version=CODE_VERSION,
        config=config,
    )
    drift = find_drift(
        leads,
        touches,
        [client_id],
        old=(earlier.as_of - timedelta(days=earlier.window_days), earlier.as_of),
        new=(earlier.as_of, later.as_of),
        as_of=later.as_of,
        config=config,
    )
    return Difference(earlier.as_of, later.as_of, explanation, drift)
