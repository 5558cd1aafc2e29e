"""Rebuilding what can be derived again: features from rows, the history's newest row.

Nothing here decides anything: it puts back what another place still tells.
"""

from collections.abc import Collection

from sqlalchemy import Engine

from conversion_assets.refresh.features import Loader, Progress, RefreshReport, refresh_features
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.reconciliation import HistoryRepair, repair_history


def rebuild_features(
    engine: Engine,
    store: FeatureStore,
    progress: Progress | None = None,
    loader: Loader | None = None,
) -> RefreshReport:
    """Compute all features anew, whatever state the store is in.

    Raises:
        ConflictError: another process writes features.
        InputError: database or store cannot be reached.
    """
    store.remove_damaged_manifest()
    return refresh_features(engine, store, force=True, progress=progress, loader=loader)


def rebuild_history(engine: Engine, client_ids: Collection[str]) -> HistoryRepair:
    """Make current patterns and history of some clients agree.

    A current document that the history lacks is appended to it; where the history has a newer one,
    or another one for the same version, that becomes current: nobody can change the history, see
    its triggers. Forecasts of a document that exists nowhere go.

    Raises:
        NotFoundError: there is no such client.
        UnreachableError: the database cannot be reached.
    """
    return repair_history(engine, client_ids)
