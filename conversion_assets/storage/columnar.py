"""The columnar store: features as sorted Parquet files under one manifest.

Layout, in a local folder or under an ``s3://`` prefix::

    manifest.json                            the only entry; replaced whole
    lead_features/b07-<random>.parquet       never changed once written
    touch_features/b07-<random>.parquet

A client's rows lie in the bucket its id hashes to, so that ten thousand clients are not ten
thousand files, and a change of one client rewrites one bucket. A write puts new files beside the
old ones and then replaces the manifest: a reader sees the state before or after it, never a
mixture, and a write that dies in between changes nothing. Files that no manifest of the last two
names are collected by a later write.
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
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

FORMAT_VERSION = 1
"""Moves when files or manifest are laid out in another way; other formats are rebuilt."""
BUCKETS = 64
"""A bucket of a store of 100 million touches has 1.5 million rows: rewritten in about a second."""
ROW_GROUP_ROWS = 32_768
"""Smallest part that is read for one client; large enough for dictionaries to pay."""
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
    bucket: int
    rows: int
    bytes: int
    sha256: str


class StoredClient(_Record):
    """What the store holds of one client."""

    leads: int
    touches: int
    fingerprint: str = Field(description="Hash of the client's rows, whatever their files")


class Manifest(_Record):
    """One consistent version of the store."""

    format_version: int = FORMAT_VERSION
    feature_version: str = ""
    revision: int = 0
    watermark: dict[str, Any] | None = Field(None, description="How far the sources were read")
    columns: dict[str, dict[str, str]] = Field(default_factory=dict)
    files: dict[str, list[StoredFile]] = Field(default_factory=dict)
    previous_paths: list[str] = Field(default_factory=list)
    zones: dict[str, str | None] = Field(
        default_factory=dict, description="Zone of each live client when it was last read"
    )
    clients: dict[str, StoredClient] = Field(default_factory=dict)

    def rows(self, table: Table) -> int:
        """Rows of a table."""
        return sum(file.rows for file in self.files.get(table, []))


def bucket_of(client_id: str) -> int:
    """Bucket of a client: the same in every process and version.

    Example:
        >>> bucket_of("acme") == bucket_of("acme")
        True
    """
    return int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:4], "big") % BUCKETS


def compute_fingerprints(tables: Mapping[Table, pl.DataFrame]) -> dict[str, str]:
    """Content hash of each client's rows over all tables.

    It depends on column names, types and values only: not on the order of the rows, on files, on
    the history of writes, or on the version of a library's own hash.

    Args:
        tables: lead_features and touch_features, in any order of rows.

    Returns:
        Hexadecimal SHA-256 by client id.
    """
    hashes: dict[str, Any] = {}
    for table in FEATURE_TABLES:
        frame = tables[table]
        order = _key_order(frame, _KEYS[table])
        head = json.dumps([table, {n: str(frame.schema[n]) for n in sorted(frame.columns)}])
        runs = _runs(_in_order(frame["client_id"], order))
        for client_id, start, stop in runs:
            hashed = hashes.setdefault(client_id, hashlib.sha256())
            hashed.update(f"{head}{stop - start}".encode())
        # Column after column, so that no second copy of a large client's rows is in memory.
        for name in sorted(frame.columns):
            cut = _column_parts(_in_order(frame[name], order))
            for client_id, start, stop in runs:
                for piece in cut(start, stop):
                    hashes[client_id].update(piece)
    return {client_id: hashed.hexdigest() for client_id, hashed in hashes.items()}


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


def _runs(ids: pl.Series) -> list[tuple[str, int, int]]:
    """Client id, first row and row after the last of each run of a sorted column."""
    runs = ids.rle().struct.unnest()
    stops = runs["len"].cast(pl.Int64).cum_sum()
    return list(
        zip(runs["value"].to_list(), (stops - runs["len"]).to_list(), stops.to_list(), strict=True)
    )


def _column_parts(column: pl.Series) -> Callable[[int, int], Iterable[bytes]]:
    """A function from a range of rows to the bytes that stand for its values."""
    valid = column.is_not_null().to_numpy().astype(np.uint8)
    if column.dtype == pl.String:
        text = column.fill_null("")
        lengths = text.str.len_bytes().to_numpy().astype("<i8")
        ends = np.concatenate([[0], np.cumsum(lengths)])
        data = "".join(text.to_list()).encode()
        return lambda start, stop: (
            valid[start:stop].tobytes(),
            lengths[start:stop].tobytes(),
            data[ends[start] : ends[stop]],
        )
    plain = column.to_physical().fill_null(False if column.dtype == pl.Boolean else 0).to_numpy()
    values = plain.astype(plain.dtype.newbyteorder("<"))
    return lambda start, stop: (valid[start:stop].tobytes(), values[start:stop].tobytes())


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
            written = json.loads(data)
            if written.get("format_version") != FORMAT_VERSION:
                # Features can always be computed again, so another format counts as empty.
                return Manifest(previous_paths=_all_paths(written)), version
            return Manifest.model_validate(written), version
        except (ValueError, ValidationError, AttributeError):
            message = f"{self._backend.url_of(_MANIFEST)}: damaged; remove it to rebuild the store"
            raise InputError(message) from None

    def read(
        self,
        table: Table,
        client_ids: Collection[str] | None = None,
        columns: Collection[str] | None = None,
    ) -> pl.DataFrame:
        """Rows of a table, sorted by its key.

        Args:
            table: ``lead_features`` or ``touch_features``.
            client_ids: only these clients; only their buckets and row groups are read.
            columns: only these, in this order.

        Raises:
            NotFoundError: nothing was ever written.
            InputError: an unknown table or column, or a file that cannot be read.
        """
        for attempt in range(READ_ATTEMPTS):
            manifest = self.load_manifest()
            try:
                return self._read_version(manifest, table, client_ids, columns)
            except (FileNotFoundError, pl.exceptions.ComputeError) as error:
                overtaken = self.load_manifest().revision != manifest.revision
                if attempt == READ_ATTEMPTS - 1 or not overtaken:
                    line = _first_line(error)
                    raise InputError(f"store {self.url}: {table} cannot be read: {line}") from None
        raise AssertionError("the loop returns or raises")

    def read_features(
        self, client_ids: Collection[str] | None = None, *, without: Collection[str] = ()
    ) -> tuple[pl.DataFrame, pl.DataFrame, Manifest]:
        """Leads, touches and the manifest of one and the same version.

        Args:
            client_ids: Only these clients.
            without: Columns of touches that nobody will look at; of millions of rows each is much.

        Raises:
            NotFoundError: nothing was ever written.
            InputError: a file cannot be read.
        """
        for _ in range(READ_ATTEMPTS):
            before = self.load_manifest()
            leads = self.read("lead_features", client_ids)
            stored = before.columns.get("touch_features", {})
            columns = [name for name in stored if name not in without] or None
            touches = self.read("touch_features", client_ids, columns)
            if self.load_manifest().revision == before.revision:
                return leads, touches, before
        raise ConflictError(f"store {self.url}: it changed at every attempt to read it; try again")

    def _read_version(
        self,
        manifest: Manifest,
        table: Table,
        client_ids: Collection[str] | None,
        columns: Collection[str] | None,
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
        files = [
            self._backend.url_of(file.path)
            for file in manifest.files[table]
            if file.rows and (buckets is None or file.bucket in buckets)
        ]
        if not files:
            return pl.DataFrame(schema=schema).select(chosen)
        scan = pl.scan_parquet(files, storage_options=self._backend.scan_options, glob=False)
        if wanted is not None:
            scan = scan.filter(pl.col("client_id").is_in(wanted))
        key = _KEYS[table]
        # The key is read for the order even where it was not asked for.
        return _sorted(scan.select({*chosen, *key}).collect(), key).select(chosen)

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
            named = {file.path for files in committed.files.values() for file in files}
            mark = f"/b{bucket:02d}-"
            stale = [path for path in old if mark in f"/{path}" and path not in named]
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
        named = {file.path for files in manifest.files.values() for file in files}
        named |= set(manifest.previous_paths)
        found = self._guarded("list", lambda: list(self._backend.listed()))
        strange = sorted((path, changed) for path, changed in found if path not in named)
        old = [path for path, changed in strange if changed < now - ORPHAN_SECONDS]
        return old, [path for path, _ in strange if path not in old]

    def find_damaged(self, manifest: Manifest) -> dict[str, str]:
        """What is wrong with each file whose bytes are not those the manifest tells of."""
        files = [file for table in manifest.files.values() for file in table]

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
        files = [f for f in manifest.files.get(table, []) if f.rows and f.path not in except_]
        schema = {"client_id": pl.String, "path": pl.String, "rows": pl.Int64}
        if not files:
            return pl.DataFrame(schema=schema)
        scan = pl.scan_parquet(
            [self._backend.url_of(file.path) for file in files],
            storage_options=self._backend.scan_options,
            glob=False,
            include_file_paths="__url",
        )
        counted = scan.group_by("client_id", "__url").agg(rows=pl.len().cast(pl.Int64)).collect()
        names = {self._backend.url_of(file.path): file.path for file in files}
        return counted.select(
            "client_id", pl.col("__url").replace_strict(names, default=None).alias("path"), "rows"
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
        for files in manifest.files.values():
            for file in files:
                found = self._guarded("read", partial(self._backend.get, file.path))
                if found is None or hashlib.sha256(found[0]).hexdigest() != file.sha256:
                    where = self._backend.url_of(file.path)
                    raise InputError(f"{where}: missing or damaged; refresh with force to rebuild")

    def _guarded(self, verb: str, call: Callable[[], Any]) -> Any:
        """Run a call of the backend; what it raises becomes one line."""
        try:
            return call()
        except ConversionError:
            raise
        except (OSError, obstore.exceptions.BaseError) as error:
            raise InputError(f"store {self.url}: cannot {verb}: {_first_line(error)}") from None


def _all_paths(written: Mapping[str, Any]) -> list[str]:
    files = written.get("files", {})
    return [file["path"] for table in files.values() for file in table]


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
        self._clients = dict(base.clients)
        self._columns: dict[str, dict[str, str]] = dict(base.columns)

    def clear(self, schemas: Mapping[Table, Mapping[str, pl.DataType]]) -> None:
        """Start from nothing: buckets that are not written again disappear.

        Args:
            schemas: columns of each table, in force also where no row is written.
        """
        for table in TABLES:
            for file in self.base.files.get(table, []):
                self._written.setdefault((table, file.bucket), None)
            self._declare(table, schemas[table])
        self._clients = {}

    def _declare(self, table: Table, schema: Mapping[str, pl.DataType]) -> None:
        self._columns[table] = {name: str(dtype) for name, dtype in schema.items()}

    @property
    def is_changed(self) -> bool:
        """Whether the new version would differ from the base in any file."""
        return bool(self._written)

    def read_bucket(self, table: Table, bucket: int) -> pl.DataFrame | None:
        """Rows of one bucket as this writer left them, or as they stand in the base.

        Raises:
            InputError: the file is missing or damaged.
        """
        if (table, bucket) in self._written:
            file = self._written[table, bucket]
        else:
            files = self.base.files.get(table, [])
            file = next((found for found in files if found.bucket == bucket), None)
        if file is None:
            return None
        backend = self._store._backend
        found = self._store._guarded("read", partial(backend.get, file.path))
        if found is None or hashlib.sha256(found[0]).hexdigest() != file.sha256:
            where = backend.url_of(file.path)
            raise InputError(f"{where}: missing or damaged; refresh with force to rebuild")
        return pl.read_parquet(io.BytesIO(found[0]))

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
        for table in TABLES:
            self._replace_rows(table, bucket, client_ids, tables[table])
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
        self, table: Table, bucket: int, client_ids: Collection[str], rows: pl.DataFrame
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
        if before is not None and whole.equals(before) and whole.schema == before.schema:
            return
        superseded = self._written.get((table, bucket))
        if before is not None or whole.height:
            self._written[table, bucket] = self._put(table, bucket, whole)
        if superseded is not None:
            self._store._backend.delete([superseded.path])

    def _put(self, table: Table, bucket: int, rows: pl.DataFrame) -> StoredFile | None:
        if rows.is_empty():
            return None
        buffer = io.BytesIO()
        rows.write_parquet(
            buffer, compression="zstd", statistics=True, row_group_size=ROW_GROUP_ROWS
        )
        data = buffer.getvalue()
        path = f"{table}/b{bucket:02d}-{secrets.token_hex(8)}.parquet"
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
            current = {file.bucket: file for file in self.base.files.get(table, [])}
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
            previous_paths=_all_paths(self.base.model_dump()) or self.base.previous_paths,
            clients=dict(sorted(self._clients.items())),
            zones=dict(sorted(zones.items())),
        )

    def discard(self) -> None:
        """Remove files that were written for a version that will not be."""
        paths = [file.path for file in self._written.values() if file is not None]
        if paths and not self.is_committed:
            self._store._backend.delete(paths)

    def _collect(self, manifest: Manifest) -> None:
        """Remove files that the last two versions do not name and that no writer can be using."""
        named = {file.path for files in manifest.files.values() for file in files}
        named |= set(manifest.previous_paths)
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
