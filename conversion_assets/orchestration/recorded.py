"""The content hash that each client's pattern was recorded with when it was last materialized."""

from collections.abc import Iterable

from dagster import AssetKey, DagsterEventType, DagsterInstance
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from conversion_assets.domain.terms import PatternType
from conversion_assets.partitions import CLIENTS, client_id_of


def read_recorded_hashes(
    instance: DagsterInstance, kinds: Iterable[PatternType] = tuple(PatternType)
) -> dict[tuple[str, str], str]:
    """Return the data version of the latest materialization by client and pattern type.

    One query per asset. Dagster has no public door to it for many partitions at once; where the
    private one has moved, nothing is known and an empty mapping is returned.
    """
    found: dict[tuple[str, str], str] = {}
    try:
        read = instance.event_log_storage.get_latest_tags_by_partition
    except AttributeError:
        return found
    for kind in kinds:
        tags = read(
            AssetKey(f"{kind}_patterns"),
            DagsterEventType.ASSET_MATERIALIZATION,
            tag_keys=[DATA_VERSION_TAG],
        )
        for key, of_partition in tags.items():
            found[client_id_of(key), str(kind)] = of_partition[DATA_VERSION_TAG]
    return found


def list_partitions(instance: DagsterInstance) -> list[str]:
    """Return the client ids that Dagster has a partition of."""
    return [client_id_of(key) for key in instance.get_dynamic_partitions(str(CLIENTS.name))]
