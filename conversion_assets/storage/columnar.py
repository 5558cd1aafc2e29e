"""The columnar store: features as sorted Parquet files under one manifest.

Layout, in a local folder or under an ``s3://`` prefix::

    manifest.json                            the only entry; replaced whole
    lead_features/b07-<random>.parquet       never changed once written
    touch_features/b07-<random>.parquet
    touch_features/s-<random>.parquet        of a segment, and the leads it replaces:
    keys/s-<random>.parquet

A client's rows lie in the bucket its id hashes to, so that ten thousand clients are not ten
thousand files, and a change of one client rewrites one bucket. A small change of many clients does
not: it is a segment, rows of some leads that stand in place of all earlier rows of those leads.
Later writes rewrite buckets for which many segments count, some at a time.

A write puts new files beside the old ones and then replaces the manifest: a reader sees the state
before or after it, never a mixture, and a write that dies in between changes nothing. Files that
no manifest of the last two names are collected by a later write.
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import obstore
import polars as pl
from obstore.exceptions import AlreadyExistsError, PreconditionError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversion_assets.domain.errors import (
    ConflictError,
    ConversionError,
    InputError,
    NotFoundError,
    SuspiciousReadError,
)
from conversion_assets.storage.fingerprints import (
    NO_ROWS,
    RowSums,
    join_sums,
    move_sums,
    read_sums,
    sum_tables,
    write_sums,
)

FORMAT_VERSION = 2
"""Moves when files or manifest are laid out in another way; other formats are rebuilt."""
BUCKETS = 64
"""A bucket of a store of 100 million touches has 1.5 million rows: rewritten in about a second."""
ROW_GROUP_ROWS = 32_768
"""Smallest part that is read for one client; large enough for dictionaries to pay."""
MEAN_SEGMENTS = 3
"""Segments that count for a bucket on average before some buckets are rewritten whole. Writes that
concern all buckets then rewrite a sixth of them each, and none ever has more than eight."""
MOST_SEGMENTS = 7
"""Segments that count for a bucket before it is rewritten whatever the others have."""
ORPHAN_SECONDS = 86_400.0
"""Files of a dead write are kept this long, for they could belong to one still at work."""
CHECKING_THREADS = 4
"""Files that are read and hashed at once: more gain nothing on a disk, and little on S3."""
READ_ATTEMPTS = 5
"""A reader that two commits overtake finds a file gone and starts again with the new manifest."""

Table = Literal["lead_features", "touch_features", "bookings"]
TABLES: tuple[Table, ...] = ("lead_features", "touch_features", "bookings")
"""Bookings (client, lead, activity) tell which lead a deleted booking was of; no detector reads it.
"""
FEATURE_TABLES: tuple[Table, ...] = ("lead_features", "touch_features")
_KEYS: dict[Table, list[str]] = {
    "lead_features": ["client_id", "lead_id"],
    "touch_features": ["client_id", "lead_id", "occurred_at", "activity_id"],
    "bookings": ["client_id", "lead_id", "activity_id"],
}
_LEAD = ["client_id", "lead_id"]
_ACTIVITY = ["client_id", "activity_id"]
_SEGMENT_KEYS = {"client_id": pl.String(), "lead_id": pl.String(), "bucket": pl.Int8()}
_SEGMENT_MARK = "/s-"
_MANIFEST = "manifest.json"
_DTYPES: dict[str, pl.DataType] = {
    str(dtype): dtype
    for dtype in (
        pl.String(), pl.Boolean(), pl.Int8(), pl.Int32(), pl.Int64(), pl.Float64(),
        pl.Datetime("us", "UTC"),
    )
}  # fmt: skip


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


def _parse_manifest(data: bytes) -> Manifest:
    written = json.loads(data)
    if written.get("format_version") != FORMAT_VERSION:
        # Features can always be computed again, so another format counts as empty.
        return Manifest(previous_paths=_all_paths(written))
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
    return _SEGMENT_MARK in path


def compute_fingerprints(tables: Mapping[Table, pl.DataFrame]) -> dict[str, str]:
    """Content hash of each client's rows over all tables.

    It depends on column names, types and values only: not on the order of the rows, on files, on
    the history of writes, or on the version of a library's own hash.

    Args:
        tables: lead_features and touch_features, in any order of rows.

    Returns:
        64 hexadecimal digits by client id; see `storage.fingerprints`.
    """
    return join_sums(sum_tables({table: tables[table] for table in FEATURE_TABLES}))


def _key_order(frame: pl.DataFrame, key: list[str]) -> pl.Series | None:
    """Positions that bring the rows into the order of their key; None where they are in it."""
    is_later: pl.Expr = pl.lit(value=False)
    for name in reversed(key):
        column, before = pl.col(name), pl.col(name).shift(1)
        is_later = (column < before) | ((column == before) & is_later)
    if not frame.select(is_later.any()).item():
        return None
    return frame.select(pl.arg_sort_by(key)).to_series()


def _in_order(column: pl.Series, order: pl.Series | None) -> pl.Series:
    return column if order is None else column.gather(order)


def _sorted(frame: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """The rows in the order of their key; the very same frame where they are in it.

    Sorting two million touches takes 0.9 GB beside the 0.5 GB they have, and a file is sorted.
    """
    order = _key_order(frame, key)
    return frame if order is None else frame.select(pl.all().gather(order))


def _merge_leads(parts: list[pl.DataFrame], key: list[str]) -> pl.DataFrame:
    """Rows of parts that share no lead, each sorted by a key that begins with it, in its order.

    Only the leads are sorted, not their rows.
    """
    if len(parts) == 1:
        return parts[0]
    whole = pl.concat(parts)
    runs = (
        whole.select(lead=pl.struct(_LEAD).rle())
        .unnest("lead")
        .with_columns(start=pl.col("len").cast(pl.Int64).cum_sum() - pl.col("len"))
        .unnest("value")
        .sort(_LEAD)
    )
    places = runs.select(pl.int_ranges("start", pl.col("start") + pl.col("len")).explode())
    return _sorted(whole.select(pl.all().gather(places.to_series().drop_nulls())), key)


class _Backend(Protocol):
    """Where bytes lie."""

    scan_options: dict[str, str] | None

    def get(self, path: str) -> tuple[bytes, str] | None: ...
    def put_new(self, path: str, data: bytes) -> None: ...
    def replace(self, path: str, data: bytes, expected: str | None) -> None: ...
    def url_of(self, path: str) -> str: ...
    def listed(self) -> Iterator[tuple[str, float]]: ...
    def delete(self, paths: list[str]) -> None: ...
    def sizes(self) -> dict[str, int]: ...
    def locked(self) -> Any: ...


class _LocalBackend:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.scan_options: dict[str, str] | None = None

    def get(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = (self.root / path).read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def put_new(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(target.parent)

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        # Writers hold the lock, so nobody can come between this look and the rename.
        current = self.get(path)
        if (current[1] if current else None) != expected:
            raise ConflictError(f"{self.root}: the store was changed by another writer; try again")
        staged = f".{path}-{secrets.token_hex(8)}"
        self.put_new(staged, data)
        (self.root / staged).replace(self.root / path)
        _sync_folder(self.root)

    def url_of(self, path: str) -> str:
        return str(self.root / path)

    def listed(self) -> Iterator[tuple[str, float]]:
        for path in self.root.rglob("*"):
            if path.is_file() and path.name not in (_MANIFEST, ".lock"):
                yield path.relative_to(self.root).as_posix(), path.stat().st_mtime

    def sizes(self) -> dict[str, int]:
        return {path: (self.root / path).stat().st_size for path, _ in self.listed()}

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            (self.root / path).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.root}: another process is writing features; wait for it to end"
                raise ConflictError(message) from None
            # The system releases the lock with the file, also when the process is killed.
            yield


def _first_line(error: BaseException) -> str:
    """What a library says, without its own backtrace."""
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def _sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _ObjectBackend:
    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self.scan_options: dict[str, str] | None = {**options, "aws_allow_http": "true"}
        strange = sorted(name for name in options if not name.startswith("aws_"))
        if strange:
            raise InputError(f"store {url}: option {strange[0]} is unknown; they begin with aws_")
        settings: Any = dict(options)
        try:
            # An endpoint is plain HTTP only where somebody wrote http:// as its address.
            self.store: Any = obstore.store.from_url(
                self.url, config=settings, client_options={"allow_http": True}
            )
        except obstore.exceptions.BaseError as error:
            raise InputError(f"store {url}: {_first_line(error)}") from None

    def get(self, path: str) -> tuple[bytes, str] | None:
        try:
            result = self.store.get(path)
        except FileNotFoundError:
            return None
        return bytes(result.bytes()), result.meta["e_tag"] or ""

    def put_new(self, path: str, data: bytes) -> None:
        self.store.put(path, data)

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        mode: Any = "create" if expected is None else {"e_tag": expected}
        try:
            self.store.put(path, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            message = f"{self.url}: the store was changed by another writer; try again"
            raise ConflictError(message) from None

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    def listed(self) -> Iterator[tuple[str, float]]:
        for batch in self.store.list():
            for entry in batch:
                if entry["path"] != _MANIFEST:
                    yield entry["path"], entry["last_modified"].timestamp()

    def sizes(self) -> dict[str, int]:
        return {entry["path"]: entry["size"] for batch in self.store.list() for entry in batch}

    def delete(self, paths: list[str]) -> None:
        self.store.delete(paths)

    @contextmanager
    def locked(self) -> Iterator[None]:
        # The conditional replacement of the manifest decides who wins.
        yield


class FeatureStore:
    """Features of all clients in a local folder or under an ``s3://`` prefix.

    Args:
        url: path, ``file://`` or ``s3://bucket/prefix``.
        options: object store settings such as ``aws_endpoint``; credentials not given here come
            from the environment, as the cloud's own tools read them.

    Raises:
        InputError: the URL is of another kind.
    """

    def __init__(self, url: str | Path, options: Mapping[str, str] | None = None) -> None:
        self.url = str(url)
        self._backend: _Backend
        if self.url.startswith("s3://"):
            self._backend = _ObjectBackend(self.url, options or {})
        elif "://" in self.url and not self.url.startswith("file://"):
            raise InputError(f"store {self.url}: use a folder or s3://bucket/prefix")
        else:
            self._backend = _LocalBackend(Path(self.url.removeprefix("file://")))
        # A refresh looks at it dozens of times; with ten thousand clients parsing takes 0.1 s.
        self._parsed: tuple[bytes | None, Manifest] = (None, Manifest())

    def load_manifest(self) -> Manifest:
        """The current version; an empty one where nothing was ever written.

        Raises:
            InputError: the manifest cannot be read.
        """
        return self._load()[0]

    def _load(self) -> tuple[Manifest, str | None]:
        found = self._guarded("read", lambda: self._backend.get(_MANIFEST))
        if found is None:
            return Manifest(), None
        data, version = found
        try:
            if data != self._parsed[0]:
                self._parsed = data, _parse_manifest(data)
            return self._parsed[1], version
        except (ValueError, ValidationError, AttributeError):
            message = f"{self._backend.url_of(_MANIFEST)}: damaged; remove it to rebuild the store"
            raise InputError(message) from None

    def read(
        self,
        table: Table,
        client_ids: Collection[str] | None = None,
        columns: Collection[str] | None = None,
        *,
        in_order: bool = True,
    ) -> pl.DataFrame:
        """Rows of a table, sorted by its key.

        Args:
            table: ``lead_features`` or ``touch_features``.
            client_ids: only these clients; only their buckets and row groups are read.
            columns: only these, in this order.
            in_order: False: clients may come in any order, the same in every table; the rows of
                each stand together and in order. Sorting takes several times as long as reading.

        Raises:
            NotFoundError: nothing was ever written.
            InputError: an unknown table or column, or a file that cannot be read.
        """
        for attempt in range(READ_ATTEMPTS):
            manifest = self.load_manifest()
            try:
                return self._read_version(manifest, table, client_ids, columns, in_order=in_order)
            except (FileNotFoundError, pl.exceptions.ComputeError) as error:
                overtaken = self.load_manifest().revision != manifest.revision
                if attempt == READ_ATTEMPTS - 1 or not overtaken:
                    line = _first_line(error)
                    raise InputError(f"store {self.url}: {table} cannot be read: {line}") from None
        raise AssertionError("the loop returns or raises")

    def read_features(
        self,
        client_ids: Collection[str] | None = None,
        *,
        without: Collection[str] = (),
        in_order: bool = True,
    ) -> tuple[pl.DataFrame, pl.DataFrame, Manifest]:
        """Leads, touches and the manifest of one and the same version.

        Args:
            client_ids: Only these clients.
            without: Columns of touches that nobody will look at; of millions of rows each is much.
            in_order: See `read`.

        Raises:
            NotFoundError: nothing was ever written.
            InputError: a file cannot be read.
        """
        for _ in range(READ_ATTEMPTS):
            before = self.load_manifest()
            leads = self.read("lead_features", client_ids, in_order=in_order)
            stored = before.columns.get("touch_features", {})
            columns = [name for name in stored if name not in without] or None
            touches = self.read("touch_features", client_ids, columns, in_order=in_order)
            if self.load_manifest().revision == before.revision:
                return leads, touches, before
        raise ConflictError(f"store {self.url}: it changed at every attempt to read it; try again")

    def _read_version(
        self,
        manifest: Manifest,
        table: Table,
        client_ids: Collection[str] | None,
        columns: Collection[str] | None,
        *,
        in_order: bool,
    ) -> pl.DataFrame:
        if table not in TABLES:
            raise InputError(f"store {self.url}: no table {table!r}; there are {', '.join(TABLES)}")
        if table not in manifest.columns:
            raise NotFoundError(f"store {self.url}: no features yet; import and refresh first")
        schema = {name: _DTYPES[text] for name, text in manifest.columns[table].items()}
        chosen = list(schema if columns is None else columns)
        unknown = sorted(set(chosen) - set(schema))
        if unknown:
            raise InputError(f"store {self.url}: {table} has no column {', '.join(unknown)}")
        wanted = None if client_ids is None else sorted(set(client_ids) & set(manifest.clients))
        buckets = None if wanted is None else {bucket_of(client_id) for client_id in wanted}
        files = [f for f in manifest.files[table] if buckets is None or f.bucket in buckets]
        key = _KEYS[table]
        # The key is read for the order even where it was not asked for.
        needed = list(dict.fromkeys([*chosen, *key]))

        def scan(files: list[StoredFile], names: list[str]) -> pl.DataFrame:
            return self._scan(files, wanted).select(names).collect()

        rows = scan(files, needed) if any(f.rows for f in files) else _none_of(schema, needed)
        live = self._live_segments(manifest, buckets, scan)
        if not (in_order or live):
            return rows.select(chosen)
        parts = [_without(rows, [keys for _, keys in live])]
        for place, (segment, keys) in enumerate(live):
            own = [f for f in segment.files.get(table, []) if f.rows]
            if own:
                counted = _without(keys, [later for _, later in live[place + 1 :]])
                parts.append(scan(own, needed).join(counted, on=_LEAD, how="semi"))
        return _sorted(_merge_leads([_sorted(p, key) for p in parts], key), key).select(chosen)

    def _scan(self, files: list[StoredFile], wanted: Collection[str] | None) -> pl.LazyFrame:
        urls = [self._backend.url_of(file.path) for file in files if file.rows]
        rows = pl.scan_parquet(urls, storage_options=self._backend.scan_options, glob=False)
        return rows if wanted is None else rows.filter(pl.col("client_id").is_in(list(wanted)))

    def _live_segments(
        self,
        manifest: Manifest,
        buckets: Collection[int] | None,
        scan: Callable[[list[StoredFile], list[str]], pl.DataFrame],
    ) -> list[tuple[Segment, pl.DataFrame]]:
        """Segments that count for some buckets, oldest first, each with the leads it replaces."""
        live = []
        for segment in manifest.segments:
            counted = [b for b in segment.buckets if buckets is None or b in buckets]
            if counted:
                keys = scan(segment.keys, list(_SEGMENT_KEYS))
                live.append((segment, keys.filter(pl.col("bucket").is_in(counted)).select(_LEAD)))
        return live

    @contextmanager
    def write(self, *, force: bool = False) -> Iterator["FeatureWriter"]:
        """A writer for one new version; nothing is visible until its ``commit``.

        Args:
            force: accept that a table loses more than half of its rows.

        Raises:
            ConflictError: another process writes now, or committed in between.
        """
        with self._backend.locked():
            manifest, version = self._load()
            writer = FeatureWriter(self, manifest, version, force=force)
            try:
                yield writer
            except BaseException:
                writer.discard()
                raise
            if not writer.is_committed:
                writer.discard()

    def erase(self, client_id: str, lead_ids: Collection[str] | None = None) -> dict[Table, int]:
        """Remove leads, or a client with all it has, from every version that is kept.

        Always commits a new version, so that a writer who read the sources before cannot commit
        what is erased here; then removes the earlier versions' files of the client's bucket.

        Args:
            client_id: The client.
            lead_ids: Some of its leads; None for all and the client itself.

        Returns:
            Rows removed from the current version, by table.

        Raises:
            ConflictError: another process writes now; nothing was changed.
            InputError: a file of the bucket is damaged; the store must be rebuilt first.
        """
        bucket = bucket_of(client_id)
        with self._backend.locked():
            manifest, version = self._load()
            # Listed before the commit: whoever wrote these builds on a version that the commit
            # ends. A file that appears later belongs to a version after ours.
            old = [path for path, _ in self._guarded("list", lambda: list(self._backend.listed()))]
            writer = FeatureWriter(self, manifest, version, force=True)
            try:
                # Rows that a segment replaced still stand in the file beneath it.
                writer.absorb(bucket)
                writer.purge_segments(bucket)
                removed = writer.erase(bucket, client_id, lead_ids)
                committed = writer.commit(
                    feature_version=manifest.feature_version,
                    watermark=manifest.watermark,
                    zones={
                        client: zone
                        for client, zone in manifest.zones.items()
                        if lead_ids is not None or client != client_id
                    },
                    keep_previous=False,
                )
            except BaseException:
                writer.discard()
                raise
            named = {file.path for file in committed.all_files()}
            marks = (f"/b{bucket:02d}-", _SEGMENT_MARK)
            stale = [p for p in old if any(m in f"/{p}" for m in marks) and p not in named]
            if stale:
                self._guarded("delete", lambda: self._backend.delete(stale))
        return removed

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file of the store, named by the manifest or not.

        Raises:
            InputError: the store cannot be listed.
        """
        sizes: dict[str, int] = self._guarded("list", self._backend.sizes)
        return {path: size for path, size in sizes.items() if path != _MANIFEST}

    def list_orphans(self, manifest: Manifest, now: float) -> tuple[list[str], list[str]]:
        """Files that no kept version names: those to collect, and those a writer may be using.

        Args:
            manifest: The current version.
            now: Seconds since 1970, as the store's own clock tells them.
        """
        named = {file.path for file in manifest.all_files()} | set(manifest.previous_paths)
        found = self._guarded("list", lambda: list(self._backend.listed()))
        strange = sorted((path, changed) for path, changed in found if path not in named)
        old = [path for path, changed in strange if changed < now - ORPHAN_SECONDS]
        return old, [path for path, _ in strange if path not in old]

    def find_damaged(self, manifest: Manifest) -> dict[str, str]:
        """What is wrong with each file whose bytes are not those the manifest tells of."""
        files = manifest.all_files()

        def check(file: StoredFile) -> str | None:
            found = self._guarded("read", partial(self._backend.get, file.path))
            if found is None:
                return "missing"
            if len(found[0]) != file.bytes:
                return f"{len(found[0]):,} bytes instead of {file.bytes:,}"
            return None if hashlib.sha256(found[0]).hexdigest() == file.sha256 else "other bytes"

        # Reading and hashing both let other threads run.
        with ThreadPoolExecutor(CHECKING_THREADS) as pool:
            found = pool.map(check, files)
            return {f.path: wrong for f, wrong in zip(files, found, strict=True) if wrong}

    def count_clients(
        self, manifest: Manifest, table: Table, *, except_: Collection[str] = ()
    ) -> pl.DataFrame:
        """Rows of a table by client and file, from the files: client_id, path, rows.

        Args:
            manifest: The current version.
            table: Which.
            except_: Files that cannot be read.
        """
        names = {"client_id": pl.String(), "path": pl.String(), "rows": pl.Int64()}
        urls = {self._backend.url_of(file.path): file.path for file in manifest.all_files()}

        def scan(files: list[StoredFile], columns: list[str]) -> pl.DataFrame:
            readable = [f for f in files if f.rows and f.path not in except_]
            if not readable:
                return pl.DataFrame(schema={**_SEGMENT_KEYS, "__url": pl.String()}).select(columns)
            rows = pl.scan_parquet(
                [self._backend.url_of(file.path) for file in readable],
                storage_options=self._backend.scan_options,
                glob=False,
                include_file_paths="__url",
            )
            return rows.select(columns).collect()

        live = self._live_segments(manifest, None, scan)
        needed = [*_LEAD, "__url"]
        parts = [_without(scan(manifest.files.get(table, []), needed), [k for _, k in live])]
        for place, (segment, keys) in enumerate(live):
            counted = _without(keys, [later for _, later in live[place + 1 :]])
            rows = scan(segment.files.get(table, []), needed)
            parts.append(rows.join(counted, on=_LEAD, how="semi"))
        counts = pl.concat(parts).group_by("client_id", "__url").agg(rows=pl.len().cast(pl.Int64))
        path = pl.col("__url").replace_strict(urls, default=None, return_dtype=pl.String)
        return counts.with_columns(path=path).select(
            pl.col(name).cast(dtype) for name, dtype in names.items()
        )

    def read_schema(self, path: str) -> dict[str, str]:
        """Columns of one file, from its footer."""
        schema = self.scan_file(path).collect_schema()
        return {name: str(dtype) for name, dtype in schema.items()}

    def remove_damaged_manifest(self) -> bool:
        """Remove a manifest that cannot be read, so that the store can be rebuilt."""
        with self._backend.locked():
            try:
                self._load()
            except InputError:
                self._guarded("delete", lambda: self._backend.delete([_MANIFEST]))
                return True
        return False

    def scan_file(self, path: str) -> pl.LazyFrame:
        """One file of the store as it lies there; nothing is read yet."""
        return pl.scan_parquet(
            self._backend.url_of(path), storage_options=self._backend.scan_options, glob=False
        )

    def url_of(self, path: str) -> str:
        """Where a file of the store lies, fit for a message."""
        return self._backend.url_of(path)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: a file is missing or differs.
        """
        manifest = self.load_manifest()
        for file in manifest.all_files():
            self.read_checked(file)

    def read_checked(self, file: StoredFile) -> bytes:
        """Bytes of a file that are those the manifest tells of.

        Raises:
            InputError: the file is missing or differs.
        """
        found = self._guarded("read", partial(self._backend.get, file.path))
        if found is None or hashlib.sha256(found[0]).hexdigest() != file.sha256:
            where = self._backend.url_of(file.path)
            raise InputError(f"{where}: missing or damaged; refresh with force to rebuild")
        return bytes(found[0])

    def _guarded(self, verb: str, call: Callable[[], Any]) -> Any:
        """Run a call of the backend; what it raises becomes one line."""
        try:
            return call()
        except ConversionError:
            raise
        except (OSError, obstore.exceptions.BaseError) as error:
            raise InputError(f"store {self.url}: cannot {verb}: {_first_line(error)}") from None


def _all_paths(written: Mapping[str, Any]) -> list[str]:
    files = [file for table in written.get("files", {}).values() for file in table]
    for segment in written.get("segments", []):
        files += segment["keys"] + [f for table in segment["files"].values() for f in table]
    return [file["path"] for file in files]


def _none_of(schema: Mapping[str, pl.DataType], names: Collection[str]) -> pl.DataFrame:
    return pl.DataFrame(schema={name: schema[name] for name in names})


def _without(rows: pl.DataFrame, keys: list[pl.DataFrame]) -> pl.DataFrame:
    """Rows of leads that none of the keys names."""
    for listed in keys:
        if listed.height:
            rows = rows.join(listed, on=_LEAD, how="anti", maintain_order="left")
    return rows


@dataclass(frozen=True)
class WrittenBuckets:
    """Files that no version names yet: whole buckets.

    Attributes:
        files: By table and bucket; None for one without rows.
        clients: What the buckets hold of each client.
        columns: Names and types of each table.
    """

    files: dict[tuple[Table, int], StoredFile | None]
    clients: dict[str, StoredClient]
    columns: dict[str, dict[str, str]]


class FeatureWriter:
    """Collects new bucket files and commits them as one version.

    Attributes:
        base: version that the new one replaces.
        is_committed: whether the new version is in force.
    """

    def __init__(
        self, store: FeatureStore, base: Manifest, version: str | None, *, force: bool
    ) -> None:
        self.base = base
        self.is_committed = False
        self._store = store
        self._version = version
        self._force = force
        self._written: dict[tuple[Table, int], StoredFile | None] = {}
        self._segments = list(base.segments)
        self._parts: list[Segment] = []
        self._put_paths: list[str] = []
        self._keys: dict[tuple[str, ...], pl.DataFrame] = {}
        self._clients = dict(base.clients)
        self._columns: dict[str, dict[str, str]] = dict(base.columns)

    @classmethod
    def detached(cls, store: FeatureStore) -> "FeatureWriter":
        """A writer that starts from nothing and never commits; another adopts what it wrote."""
        return cls(store, Manifest(), None, force=True)

    def hand_over(self) -> "WrittenBuckets":
        """What a detached writer wrote; the files are whose who adopts them."""
        written, self._written = self._written, {}
        return WrittenBuckets(written, dict(self._clients), dict(self._columns))

    def adopt(self, found: "WrittenBuckets") -> None:
        """Take over whole buckets that a detached writer wrote to the same store."""
        self._written.update(found.files)
        self._clients.update(found.clients)
        self._columns.update(found.columns)

    def clear(self, schemas: Mapping[Table, Mapping[str, pl.DataType]]) -> None:
        """Start from nothing: buckets that are not written again disappear.

        Args:
            schemas: columns of each table, in force also where no row is written.
        """
        for table in TABLES:
            for file in self.base.files.get(table, []):
                if file.bucket is not None:
                    self._written.setdefault((table, file.bucket), None)
            self._declare(table, schemas[table])
        self._segments = []
        self._clients = {}

    def _declare(self, table: Table, schema: Mapping[str, pl.DataType]) -> None:
        self._columns[table] = {name: str(dtype) for name, dtype in schema.items()}

    @property
    def is_changed(self) -> bool:
        """Whether the new version would differ from the base in any file."""
        return bool(self._written or self._parts) or self._segments != self.base.segments

    def read_bucket(self, table: Table, bucket: int) -> pl.DataFrame | None:
        """Rows of one bucket as this writer left them, or as they stand in the base.

        Raises:
            InputError: a file is missing or damaged.
        """
        parts = self._find_parts(table, [bucket], self._read)
        if not any(part.height for part in parts):
            return parts[0] if self._own_files(table, [bucket]) else None
        return _merge_leads([part for part in parts if part.height], _KEYS[table])

    def read_leads(
        self,
        table: Table,
        buckets: Collection[int],
        leads: pl.DataFrame,
        activities: pl.DataFrame | None = None,
    ) -> pl.DataFrame:
        """Rows of some leads in the base, and rows of some activities whatever their lead.

        Args:
            table: Which.
            buckets: Buckets of their clients.
            leads: Columns client_id and lead_id.
            activities: Columns client_id and activity_id, where the table has them.

        Returns:
            The rows, in no order.

        Raises:
            InputError: a file is missing or damaged.
        """
        # Ids alone reach the file's reader; other clients may have leads of the same name.
        chosen = pl.col("lead_id").is_in(leads["lead_id"].unique().implode())
        if activities is not None:
            chosen |= pl.col("activity_id").is_in(activities["activity_id"].unique().implode())

        def read(files: list[StoredFile]) -> pl.DataFrame:
            some = self._open(files).filter(chosen).collect()
            rows = some.join(leads, on=_LEAD, how="semi")
            if activities is None or rows.height == some.height:
                return rows
            others = some.join(leads, on=_LEAD, how="anti")
            return pl.concat([rows, others.join(activities, on=_ACTIVITY, how="semi")])

        return pl.concat(self._find_parts(table, buckets, read))

    def _own_files(self, table: Table, buckets: Collection[int]) -> list[StoredFile]:
        """Files of buckets as this writer left them, or of the base."""
        base = self.base.files.get(table, [])
        kept = [f for f in base if f.bucket in buckets and (table, f.bucket) not in self._written]
        written = [self._written.get((table, bucket)) for bucket in buckets]
        return [*kept, *(file for file in written if file is not None)]

    def _find_parts(
        self,
        table: Table,
        buckets: Collection[int],
        read: Callable[[list[StoredFile]], pl.DataFrame],
    ) -> list[pl.DataFrame]:
        """Rows of buckets: of their own files, then of each segment that counts for them."""
        own = self._own_files(table, buckets)
        schema = {name: _DTYPES[text] for name, text in self._columns.get(table, {}).items()}
        rows = read(own) if own else pl.DataFrame(schema=schema)
        live = []
        for segment in self._segments:
            counted = [bucket for bucket in segment.buckets if bucket in buckets]
            if counted:
                keys = self._read_keys(segment).filter(pl.col("bucket").is_in(counted))
                live.append((segment, keys.select(_LEAD)))
        parts = [_without(rows, [keys for _, keys in live])]
        for place, (segment, keys) in enumerate(live):
            if table in segment.files:
                counted_keys = _without(keys, [later for _, later in live[place + 1 :]])
                part = read(segment.files[table]).join(counted_keys, on=_LEAD, how="semi")
                parts.append(part.select(rows.columns) if own else part)
        return parts if own or len(parts) == 1 else parts[1:]

    def _read_keys(self, segment: Segment) -> pl.DataFrame:
        paths = tuple(file.path for file in segment.keys)
        if paths not in self._keys:
            self._keys[paths] = self._read(segment.keys)
        return self._keys[paths]

    def _open(self, files: list[StoredFile]) -> pl.LazyFrame:
        found: list[Any] = [io.BytesIO(self._store.read_checked(file)) for file in files]
        return pl.scan_parquet(found)

    def _read(self, files: list[StoredFile]) -> pl.DataFrame:
        return pl.concat([pl.read_parquet(io.BytesIO(self._store.read_checked(f))) for f in files])

    def replace_clients(
        self, bucket: int, client_ids: Collection[str], tables: Mapping[Table, pl.DataFrame]
    ) -> None:
        """Put the given rows in place of all rows of some clients of one bucket.

        Tables whose rows stay the same keep their file.

        Args:
            bucket: bucket of all the clients.
            client_ids: clients whose rows are replaced; those without rows disappear.
            tables: their rows, one frame for each of :data:`TABLES`.

        Raises:
            InputError: a row belongs to another client, or a file cannot be read or written.
        """
        if any(bucket_of(client_id) != bucket for client_id in client_ids):
            raise InputError(f"store {self._store.url}: a client is not of bucket {bucket}")
        has_segments = any(bucket in segment.buckets for segment in self._segments)
        for table in TABLES:
            self._replace_rows(table, bucket, client_ids, tables[table], is_due=has_segments)
        self._leave_segments(bucket)
        fingerprints = compute_fingerprints(tables)
        leads, touches = (
            dict(tables[table].group_by("client_id").len().iter_rows()) for table in FEATURE_TABLES
        )
        for client_id in client_ids:
            self._clients.pop(client_id, None)
        for client_id, fingerprint in fingerprints.items():
            self._clients[client_id] = StoredClient(
                leads=leads.get(client_id, 0),
                touches=touches.get(client_id, 0),
                fingerprint=fingerprint,
            )

    def erase(
        self, bucket: int, client_id: str, lead_ids: Collection[str] | None
    ) -> dict[Table, int]:
        """Take leads of one client, or all it has, out of its bucket; returns rows by table."""
        removed: dict[Table, int] = {}
        kept: dict[Table, pl.DataFrame] = {}
        for table in TABLES:
            rows = self.read_bucket(table, bucket)
            if rows is None:
                stated = self.base.columns.get(table) or dict.fromkeys(_KEYS[table], "String")
                rows = pl.DataFrame(schema={name: _DTYPES[text] for name, text in stated.items()})
            own = rows.filter(pl.col("client_id") == client_id)
            gone = pl.lit(True) if lead_ids is None else pl.col("lead_id").is_in(list(lead_ids))
            kept[table] = own.filter(~gone)
            removed[table] = own.height - kept[table].height
        if any(removed.values()):
            self.replace_clients(bucket, [client_id], kept)
        elif lead_ids is None:
            self._clients.pop(client_id, None)
        return removed

    def _replace_rows(
        self,
        table: Table,
        bucket: int,
        client_ids: Collection[str],
        rows: pl.DataFrame,
        *,
        is_due: bool,
    ) -> None:
        strangers = sorted(set(rows["client_id"].unique().to_list()) - set(client_ids))
        if strangers:
            raise InputError(f"store {self._store.url}: {table} has rows of {strangers[0]} too")
        self._declare(table, rows.schema)
        before = self.read_bucket(table, bucket)
        whole = rows
        if before is not None:
            others = before.filter(~pl.col("client_id").is_in(list(client_ids)))
            # A new feature version has other columns, and then replaces every client.
            whole = pl.concat([others, rows]) if others.height else rows
        whole = _sorted(whole, _KEYS[table])
        is_same = before is not None and whole.equals(before) and whole.schema == before.schema
        if is_same and not is_due:
            return
        superseded = self._written.get((table, bucket))
        if before is not None or whole.height:
            self._written[table, bucket] = self._put(table, bucket, whole)
        if superseded is not None:
            self._store._backend.delete([superseded.path])

    def replace_leads(
        self,
        leads: pl.DataFrame,
        gone: Mapping[Table, RowSums],
        after: Mapping[Table, pl.DataFrame],
    ) -> None:
        """Put rows in place of all rows of some leads, as a segment beside the buckets.

        A lead may be given once in a version, and none of a bucket whose clients are replaced.

        Args:
            leads: Columns client_id and lead_id; a lead without rows disappears.
            gone: Sums of their rows in the base, by table.
            after: Their rows from now on, one frame for each of :data:`TABLES`.

        Raises:
            InputError: a row is of another lead, or a file cannot be written.
        """
        for table in TABLES:
            strange = after[table].join(leads, on=_LEAD, how="anti")
            if strange.height:
                raise InputError(f"store {self._store.url}: {table} has rows of other leads too")
        come = sum_tables({table: after[table] for table in TABLES})
        if gone == come:
            return
        owners = leads["client_id"].unique().sort()
        numbers = pl.Series([bucket_of(client_id) for client_id in owners], dtype=pl.Int8)
        placed = pl.DataFrame({"client_id": owners, "bucket": numbers})
        keys = leads.select(_LEAD).unique().join(placed, on="client_id").sort(_LEAD)
        rows: dict[str, pl.DataFrame] = {"keys": keys.select(_SEGMENT_KEYS.keys())}
        rows |= {t: _sorted(after[t], _KEYS[t]) for t in TABLES if after[t].height}
        # Each waits for the disk in turn, and the others go on.
        with ThreadPoolExecutor(len(rows)) as pool:
            put = {name: pool.submit(self._put_segment, name, part) for name, part in rows.items()}
        files = {name: future.result() for name, future in put.items()}
        self._parts.append(
            Segment(
                buckets=sorted(set(numbers.to_list())),
                keys=[files["keys"]],
                files={table: [files[table]] for table in TABLES if table in files},
            )
        )
        self._move_clients(gone, come)

    def _move_clients(self, gone: Mapping[Table, RowSums], come: Mapping[Table, RowSums]) -> None:
        """Count and sum what the clients have when some rows went and others came."""
        found = [sums for table in FEATURE_TABLES for sums in (gone[table], come[table])]
        for client_id in sorted({client_id for sums in found for client_id in sums.rows}):
            now = self._clients.get(client_id)
            sums = read_sums(now.fingerprint) if now else [NO_ROWS] * len(FEATURE_TABLES)
            counts = [now.leads, now.touches] if now else [0, 0]
            for place, table in enumerate(FEATURE_TABLES):
                out, new = gone[table], come[table]
                counts[place] += new.rows.get(client_id, 0) - out.rows.get(client_id, 0)
                sums[place] = move_sums(
                    sums[place],
                    out.sums.get(client_id, NO_ROWS),
                    new.sums.get(client_id, NO_ROWS),
                )
            self._clients.pop(client_id, None)
            if any(counts):
                self._clients[client_id] = StoredClient(
                    leads=counts[0], touches=counts[1], fingerprint=write_sums(sums)
                )

    def due_buckets(self) -> list[int]:
        """Buckets to rewrite in this version because many segments count for them."""
        counts = Counter(bucket for segment in self._segments for bucket in segment.buckets)
        too_many = sum(counts.values()) - MEAN_SEGMENTS * len(counts)
        due = []
        for bucket, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if count >= MOST_SEGMENTS or too_many > 0:
                due.append(bucket)
                too_many -= count
        return sorted(due)

    def absorb(self, bucket: int) -> None:
        """Write a bucket whole, so that no segment counts for it any more."""
        if any(bucket in segment.buckets for segment in self._segments):
            for table in TABLES:
                rows = self.read_bucket(table, bucket)
                if rows is not None:
                    self._replace_rows(table, bucket, (), rows.clear(), is_due=True)
            self._leave_segments(bucket)

    def purge_segments(self, bucket: int) -> None:
        """Write segments that hold rows of a bucket again, without those.

        Only for a bucket that no segment counts for: the rows are not read any more.
        """
        purged = []
        for segment in self._segments:
            keys = self._read_keys(segment)
            left = keys.filter(pl.col("bucket") != bucket)
            if left.height == keys.height:
                purged.append(segment)
            elif left.height:
                files = {t: self._read(f) for t, f in segment.files.items()}
                kept = {t: rows.join(left, on=_LEAD, how="semi") for t, rows in files.items()}
                purged.append(
                    Segment(
                        buckets=segment.buckets,
                        keys=[self._put_segment("keys", left)],
                        files={
                            table: [self._put_segment(table, _sorted(rows, _KEYS[table]))]
                            for table, rows in kept.items()
                            if rows.height
                        },
                    )
                )
        self._segments = purged

    def _leave_segments(self, bucket: int) -> None:
        self._segments = [
            segment.model_copy(update={"buckets": [b for b in segment.buckets if b != bucket]})
            for segment in self._segments
            if segment.buckets != [bucket]
        ]

    def _put_segment(self, folder: str, rows: pl.DataFrame) -> StoredFile:
        file = self._put_rows(f"{folder}{_SEGMENT_MARK}", rows, None)
        self._put_paths.append(file.path)
        return file

    def _put(self, table: Table, bucket: int, rows: pl.DataFrame) -> StoredFile | None:
        return None if rows.is_empty() else self._put_rows(f"{table}/b{bucket:02d}-", rows, bucket)

    def _put_rows(self, start: str, rows: pl.DataFrame, bucket: int | None) -> StoredFile:
        buffer = io.BytesIO()
        rows.write_parquet(
            buffer, compression="zstd", statistics=True, row_group_size=ROW_GROUP_ROWS
        )
        data = buffer.getvalue()
        path = f"{start}{secrets.token_hex(8)}.parquet"
        store = self._store
        store._guarded("write", lambda: store._backend.put_new(path, data))
        return StoredFile(
            path=path,
            bucket=bucket,
            rows=rows.height,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def commit(
        self,
        *,
        feature_version: str,
        watermark: dict[str, Any] | None,
        zones: Mapping[str, str | None] | None = None,
        keep_previous: bool = True,
    ) -> Manifest:
        """Put the new version in force.

        Args:
            feature_version: Version of the code that computed the rows.
            watermark: How far the sources were read.
            zones: Zone of each live client.
            keep_previous: Keep the files of the version before for readers still at work.

        Returns:
            Its manifest.

        Raises:
            SuspiciousReadError: a table would have less than half of its rows, and no force.
            ConflictError: another writer committed since this one began.
        """
        manifest = self._new_manifest(feature_version, watermark, zones or {})
        if not keep_previous:
            manifest = manifest.model_copy(update={"previous_paths": []})
        if not self._force:
            for table in FEATURE_TABLES:
                _refuse_small(table, before=self.base.rows(table), now=manifest.rows(table))
        data = manifest.model_dump_json().encode()
        store = self._store
        replace = store._backend.replace
        store._guarded("write", lambda: replace(_MANIFEST, data, self._version))
        self.is_committed = True
        self._collect(manifest)
        return manifest

    def _new_manifest(
        self,
        feature_version: str,
        watermark: dict[str, Any] | None,
        zones: Mapping[str, str | None],
    ) -> Manifest:
        files: dict[str, list[StoredFile]] = {}
        for table in TABLES:
            current = {f.bucket: f for f in self.base.files.get(table, []) if f.bucket is not None}
            for (of_table, bucket), file in self._written.items():
                if of_table == table:
                    current.pop(bucket, None)
                    if file is not None:
                        current[bucket] = file
            files[table] = [current[bucket] for bucket in sorted(current)]
        return Manifest(
            feature_version=feature_version,
            revision=self.base.revision + 1,
            watermark=watermark,
            columns=self._columns,
            files=files,
            segments=[*self._segments, *_joined(self._parts)],
            previous_paths=_all_paths(self.base.model_dump()) or self.base.previous_paths,
            clients=dict(sorted(self._clients.items())),
            zones=dict(sorted(zones.items())),
        )

    def discard(self) -> None:
        """Remove files that were written for a version that will not be."""
        paths = [file.path for file in self._written.values() if file is not None]
        paths += self._put_paths
        if paths and not self.is_committed:
            self._store._backend.delete(paths)

    def _collect(self, manifest: Manifest) -> None:
        """Remove files that the last two versions do not name and that no writer can be using."""
        named = {file.path for file in manifest.all_files()} | set(manifest.previous_paths)
        oldest = time.time() - ORPHAN_SECONDS
        gone = [
            path
            for path, changed in self._store._backend.listed()
            if path not in named and changed < oldest
        ]
        if gone:
            self._store._backend.delete(gone)


def _refuse_small(table: Table, *, before: int, now: int) -> None:
    if 2 * now < before:
        message = f"{table} would shrink from {before} to {now} rows; nothing was overwritten"
        raise SuspiciousReadError(f"{message}. If that is right, refresh with force")


def _joined(parts: list[Segment]) -> list[Segment]:
    """Parts of one version, which share no lead, as one segment."""
    if not parts:
        return []
    return [
        Segment(
            buckets=sorted({bucket for part in parts for bucket in part.buckets}),
            keys=[file for part in parts for file in part.keys],
            files={
                table: [file for part in parts for file in part.files.get(table, [])]
                for table in TABLES
                if any(table in part.files for part in parts)
            },
        )
    ]
