"""The client partitions: one Dagster partition per client, named so that Dagster can carry it.

Client ids are opaque strings, but Dagster splits partition keys at commas, bars, brackets and dots
in backfills and ranges. Keys are therefore limited to `[A-Za-z0-9_-]` and every other byte of an
id is written as `_x` and two hexadecimal digits. Most ids (UUIDs, slugs) are their own key.
"""

import re
from collections.abc import Iterable, Sequence

from dagster import DagsterInstance, DynamicPartitionsDefinition

from conversion_assets.domain.errors import InputError

CLIENTS = DynamicPartitionsDefinition(name="clients")
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]|_(?=x)")
_ESCAPE = re.compile(rb"_x([0-9a-f]{2})")


def partition_key(client_id: str) -> str:
    """Return the partition key of a client id; `client_id_of` is its inverse.

    Raises:
        InputError: the id is empty.

    Example:
        >>> partition_key("acme.com/EU"), partition_key("c-17_a")
        ('acme_x2ecom_x2fEU', 'c-17_a')
    """
    if not client_id:
        raise InputError("a client id is empty; give every client a non-empty id")
    escaped = _UNSAFE.sub(lambda match: b"_x%02x" % match[0][0], client_id.encode())
    return escaped.decode()


def client_id_of(key: str) -> str:
    """Return the client id that a partition key stands for.

    Example:
        >>> client_id_of("acme_x2ecom_x2fEU")
        'acme.com/EU'
    """
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), key.encode()).decode()


def sync_partitions(instance: DagsterInstance, client_ids: Iterable[str]) -> list[str]:
    """Add a partition for every client that has none yet, and return the keys added.

    Keys are never deleted: a client that leaves stops being chosen, and its history stays.
    """
    known = set(instance.get_dynamic_partitions(str(CLIENTS.name)))
    new = [key for key in map(partition_key, client_ids) if key not in known]
    if new:
        instance.add_dynamic_partitions(str(CLIENTS.name), new)
    return new


def covering_range(ordered_keys: Sequence[str], chosen: Iterable[str]) -> dict[str, str]:
    """Return the run tags of the smallest range of keys that holds all chosen ones.

    One run covers a sparse set of clients this way; the run's config names the clients. The order
    of keys is the order of their insertion, and a range written backwards would be empty.

    Raises:
        InputError: nothing was chosen, or a chosen key is not a partition.

    Example:
        >>> covering_range(["a", "b", "c", "d"], ["c", "a"])[RANGE_END_TAG]
        'c'
    """
    position = {key: index for index, key in enumerate(ordered_keys)}
    places = [position.get(key, -1) for key in chosen]
    if not places or min(places) < 0:
        raise InputError("every chosen client must have a partition; import the clients first")
    return {
        RANGE_START_TAG: ordered_keys[min(places)],
        RANGE_END_TAG: ordered_keys[max(places)],
    }
