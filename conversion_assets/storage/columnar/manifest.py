"""What a version of the columnar store is: tables, files, and what it holds of each client."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 2
"""Moves when files or manifest are laid out in another way; other formats are rebuilt."""
BUCKETS = 64
"""A bucket of a store of 100 million touches has 1.5 million rows: rewritten in about a second."""

Table = Literal["lead_features", "touch_features", "bookings"]
TABLES: tuple[Table, ...] = ("lead_features", "touch_features", "bookings")
"""Bookings (client, lead, activity) tell which lead a deleted booking was of; no detector reads it.
"""
FEATURE_TABLES: tuple[Table, ...] = ("lead_features", "touch_features")
"""What detectors read; fingerprints and counts of a client are of these."""
TABLE_KEYS: dict[Table, list[str]] = {
    "lead_features": ["client_id", "lead_id"],
    "touch_features": ["client_id", "lead_id", "occurred_at", "activity_id"],
    "bookings": ["client_id", "lead_id", "activity_id"],
}
"""Rows of a file and of a read stand in the order of these."""
LEAD_KEY = ["client_id", "lead_id"]
ACTIVITY_KEY = ["client_id", "activity_id"]
SEGMENT_SCHEMA = {"client_id": pl.String(), "lead_id": pl.String(), "bucket": pl.Int8()}
"""Columns of the leads that a segment replaces."""
SEGMENT_MARK = "/s-"
"""Stands in the path of every file of a segment, and in no other."""
MANIFEST_PATH = "manifest.json"
DTYPES: dict[str, pl.DataType] = {
    str(dtype): dtype
    for dtype in (
        pl.String(), pl.Boolean(), pl.Int8(), pl.Int32(), pl.Int64(), pl.Float64(),
        pl.Datetime("us", "UTC"),
    )
}  # fmt: skip
"""Types of columns by their names in a manifest."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Record):
    """One Parquet file of a table."""

    path: str
    bucket: int | None = Field(None, description="None: of a segment, rows of any bucket")
    rows: int
    bytes: int
    sha256: str


class StoredClient(_Record):
    """What the store holds of one client."""

    leads: int
    touches: int
    fingerprint: str = Field(description="Hash of the client's rows, whatever their files")


class Segment(_Record):
    """Rows of some leads, in place of all rows of those leads that were written before.

    Attributes:
        buckets: Buckets it counts for; the others were written whole since.
        keys: Files with client_id, lead_id and bucket of the leads.
        files: Their rows, by table; a lead without rows has gone.
    """

    buckets: list[int]
    keys: list[StoredFile]
    files: dict[Table, list[StoredFile]]


class Manifest(_Record):
    """One consistent version of the store."""

    format_version: int = FORMAT_VERSION
    feature_version: str = ""
    revision: int = 0
    watermark: dict[str, Any] | None = Field(None, description="How far the sources were read")
    columns: dict[str, dict[str, str]] = Field(default_factory=dict)
    files: dict[str, list[StoredFile]] = Field(default_factory=dict)
    segments: list[Segment] = Field(default_factory=list, description="Oldest first")
    previous_paths: list[str] = Field(default_factory=list)
    zones: dict[str, str | None] = Field(
        default_factory=dict, description="Zone of each live client when it was last read"
    )
    clients: dict[str, StoredClient] = Field(default_factory=dict)

    def rows(self, table: Table) -> int:
        """Rows of a table; of bookings also those that segments replaced."""
        if table == "lead_features":
            return sum(client.leads for client in self.clients.values())
        if table == "touch_features":
            return sum(client.touches for client in self.clients.values())
        return sum(file.rows for file in self.table_files(table))

    def table_files(self, table: Table) -> list[StoredFile]:
        """Files with rows of a table, those of segments last."""
        of_segments = [f for segment in self.segments for f in segment.files.get(table, [])]
        return [*self.files.get(table, []), *of_segments]

    def all_files(self) -> list[StoredFile]:
        """Every file of this version."""
        tables = [file for table in TABLES for file in self.table_files(table)]
        return tables + [file for segment in self.segments for file in segment.keys]


def parse_manifest(data: bytes) -> Manifest:
    """A version from its file; an empty one that names the files where the format is another.

    Raises:
        ValueError: It is none.
    """
    written = json.loads(data)
    if written.get("format_version") != FORMAT_VERSION:
        # Features can always be computed again, so another format counts as empty.
        return Manifest(previous_paths=list_paths(written))
    return Manifest.model_validate(written)


def bucket_of(client_id: str) -> int:
    """Bucket of a client: the same in every process and version.

    Example:
        >>> bucket_of("acme") == bucket_of("acme")
        True
    """
    return int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:4], "big") % BUCKETS


def is_of_segment(path: str) -> bool:
    """Whether a file of the store holds rows beside the buckets, of any client.

    Example:
        >>> is_of_segment("touch_features/s-0f.parquet"), is_of_segment("keys/b07-0f.parquet")
        (True, False)
    """
    return SEGMENT_MARK in path


def list_paths(written: Mapping[str, Any]) -> list[str]:
    """Paths of every file that a manifest, as it is written, names."""
    files = [file for table in written.get("files", {}).values() for file in table]
    for segment in written.get("segments", []):
        files += segment["keys"] + [f for table in segment["files"].values() for f in table]
    return [file["path"] for file in files]
