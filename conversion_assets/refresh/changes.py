"""Which clients are worth learning again: their data or the code changed since the last time."""

import json
from collections import Counter
from dataclasses import dataclass, field

import polars as pl
from sqlalchemy import Engine, text

from conversion_assets.features import FEATURE_VERSION
from conversion_assets.learning import CODE_VERSION
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import reported_connection_errors
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets.storage.sources import Watermark, open_snapshot

LEAST_ROWS = 50
"""Fewer changed leads and activities move no estimate of a client by a visible amount."""
LEAST_SHARE = 0.05
"""Nor does a smaller share of all its activities, however many rows that is."""


@dataclass(frozen=True)
class ChangeCursor:
    """What a sensor remembers between two looks.

    Attributes:
        watermark: Up to where changes were counted.
        pending: Changed rows by client that have not led to a run yet.
    """

    watermark: Watermark
    pending: dict[str, int] = field(default_factory=dict)

    def dump(self) -> str:
        """Text to keep; `parse` reads it back."""
        return json.dumps({"watermark": str(self.watermark), "pending": self.pending})

    @classmethod
    def parse(cls, stored: str) -> "ChangeCursor":
        """Read the text of a cursor.

        Example:
            >>> ChangeCursor.parse('{"watermark": "7f3a/42", "pending": {"a": 3}}').pending
            {'a': 3}
        """
        plain = json.loads(stored)
        return cls(Watermark.parse(plain["watermark"]), plain["pending"])


def find_changed_clients(engine: Engine, stored: str | None) -> tuple[list[str], ChangeCursor]:
    """Return the active clients to learn again, and the cursor to keep once they are.

    A client is worth it when it has no outcome at all, or when enough of its leads and activities
    changed. The first look, or one into another database, only remembers where to start.

    Args:
        engine: System of record.
        stored: Cursor of the last look, as text.

    Raises:
        InputError: the database cannot be read.
    """
    before = ChangeCursor.parse(stored) if stored else None
    with open_snapshot(engine) as snapshot:
        watermark = snapshot.watermark
        active = snapshot.active_client_ids()
        sizes = dict(snapshot.count_rows("activities").iter_rows())
    changed: Counter[str] = Counter()
    if before is not None and before.watermark.epoch == watermark.epoch:
        changed.update(before.pending)
        changed.update(_count_changes(engine, before.watermark))
    learned = set(PatternRepository(engine).outcomes()["client_id"])
    chosen = [
        client
        for client in active
        if client not in learned
        or changed[client] >= max(LEAST_ROWS, LEAST_SHARE * sizes.get(client, 0))
    ]
    of_active = {client: changed[client] for client in active if changed[client]}
    return chosen, ChangeCursor(watermark, of_active)


def find_stale_clients(engine: Engine, store: FeatureStore) -> list[str]:
    """Return the active clients whose features or patterns are of another version of the code.

    A client that was never learned is not stale, it is new. Features are stored for all clients by
    one version, so that another one concerns whoever was ever learned.

    Raises:
        InputError: the database or the store cannot be read.
    """
    with open_snapshot(engine) as snapshot:
        active = set(snapshot.active_client_ids())
    learned = PatternRepository(engine).outcomes(sorted(active))
    if store.load_manifest().feature_version in ("", FEATURE_VERSION):
        learned = learned.filter(pl.col("code_version") != CODE_VERSION)
    return learned["client_id"].unique().sort().to_list()


def _count_changes(engine: Engine, since: Watermark) -> Counter[str]:
    counted: Counter[str] = Counter()
    with reported_connection_errors(engine), engine.connect() as connection:
        for table in ("leads", "activities"):
            query = (
                f"SELECT client_id, count(*) FROM {table} WHERE change_id >= :p GROUP BY client_id"  # noqa: S608 - two names of our own
            )
            for client_id, rows in connection.execute(text(query), {"p": since.position}):
                counted[client_id] += rows
    return counted
