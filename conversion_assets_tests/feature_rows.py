"""Small feature frames for tests of the columnar store, and a way to write them."""

import polars as pl

from conversion_assets.storage.columnar.manifest import Manifest, Table, bucket_of
from conversion_assets.storage.columnar.store import FeatureStore


def leads_of(client_id: str, count: int, value: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "client_id": [client_id] * count,
            "lead_id": [f"lead-{number:05d}" for number in range(count)],
            "industry": [None if number % 7 == 0 else f"é{number % 5}" for number in range(count)],
            "authority": [float(value + number) for number in range(count)],
            "is_hiring": [None if number % 3 else True for number in range(count)],
        },
        schema={
            "client_id": pl.String,
            "lead_id": pl.String,
            "industry": pl.String,
            "authority": pl.Float64,
            "is_hiring": pl.Boolean,
        },
    )


def touches_of(client_id: str, count: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "client_id": [client_id] * count,
            "lead_id": ["lead-00000"] * count,
            "activity_id": [f"a{number:05d}" for number in range(count)],
            "occurred_at": list(range(count)),
            "touch_number": list(range(count)),
        },
        schema={
            "client_id": pl.String,
            "lead_id": pl.String,
            "activity_id": pl.String,
            "occurred_at": pl.Datetime("us", "UTC"),
            "touch_number": pl.Int32,
        },
    )


def rows_of(client_id: str, count: int, value: int = 0) -> dict[Table, pl.DataFrame]:
    touches = touches_of(client_id, count)
    return {
        "lead_features": leads_of(client_id, count, value),
        "touch_features": touches,
        "bookings": touches.select("client_id", "lead_id", "activity_id").head(1),
    }


def write_rows(
    store: FeatureStore, counts: dict[str, int], *, value: int = 0, force: bool = False
) -> Manifest:
    with store.write(force=force) as writer:
        for client_id, count in counts.items():
            writer.replace_clients(
                bucket_of(client_id), [client_id], rows_of(client_id, count, value)
            )
        return writer.commit(feature_version="v", watermark={"at": value})
