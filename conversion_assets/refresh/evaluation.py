"""Evaluate what is stored: the record so far, and a replay of the last weeks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import NotFoundError
from conversion_assets.domain.patterns import AnyPattern, Claim
from conversion_assets.domain.terms import PatternType
from conversion_assets.evaluation.backtest import Backtest, run_backtest, summarize_forecasts
from conversion_assets.evaluation.forward import build_record
from conversion_assets.learning import Detection, detect_patterns, list_claims
from conversion_assets.refresh.forward import look_back
from conversion_assets.refresh.patterns import read_pool
from conversion_assets.storage.columnar import FeatureStore


@dataclass(frozen=True)
class Evaluation:
    """The forward record of what was learned, and of what a replay would have learned.

    Attributes:
        as_of: Nothing later counted.
        record: Claims of this home with what became of them, as `build_record` gives it.
        summary: How this home's forecasts did, as `summarize_forecasts` gives it.
        backtest: The replay; None when no weeks were asked for.
    """

    as_of: datetime
    record: pl.DataFrame
    summary: pl.DataFrame
    backtest: Backtest | None


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
    return Evaluation(
        as_of=as_of,
        record=build_record(state.known, as_of, config),
        summary=summarize_forecasts(state.known),
        backtest=replay,
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
