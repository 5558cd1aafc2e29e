"""The store of features: reading one version of it, checking it, and erasing from it."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from conversion_assets.domain.errors import ConflictError, InputError, NotFoundError
from conversion_assets.storage.columnar.files import StoreFiles, first_line
from conversion_assets.storage.columnar.manifest import (
    DTYPES,
    LEAD_KEY,
    MANIFEST_PATH,
    SEGMENT_MARK,
    SEGMENT_SCHEMA,
    TABLE_KEYS,
    TABLES,
    Manifest,
    Segment,
    StoredFile,
    Table,
    bucket_of,
    parse_manifest,
)
from conversion_assets.storage.columnar.rows import empty_of, leave_out, merge_leads, sort_rows
from conversion_assets.storage.columnar.writer import ORPHAN_SECONDS, FeatureWriter

CHECKING_THREADS = 4
"""Files that are read and hashed at once: more gain nothing on a disk, and little on S3."""
READ_ATTEMPTS = 5
"""A reader that two commits overtake finds a file gone and starts again with the new manifest."""


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
        self._files = StoreFiles(self.url, options or {})
        # A refresh looks at it dozens of times; with ten thousand clients parsing takes 0.1 s.
        self._parsed: tuple[bytes | None, Manifest] = (None, Manifest())

    def load_manifest(self) -> Manifest:
        """The current version; an empty one where nothing was ever written.

        Raises:
            InputError: the manifest cannot be read.
        """
        return self._load()[0]

    def _load(self) -> tuple[Manifest, str | None]:
        found = self._files.get(MANIFEST_PATH)
        if found is None:
            return Manifest(), None
        data, version = found
        try:
            if data != self._parsed[0]:
                self._parsed = data, parse_manifest(data)
            return self._parsed[1], version
        except (ValueError, ValidationError, AttributeError):
            message = (
                f"{self._files.url_of(MANIFEST_PATH)}: damaged; remove it to rebuild the store"
            )
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
                    line = first_line(error)
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
        schema = {name: DTYPES[text] for name, text in manifest.columns[table].items()}
        chosen = list(schema if columns is None else columns)
        unknown = sorted(set(chosen) - set(schema))
        if unknown:
            raise InputError(f"store {self.url}: {table} has no column {', '.join(unknown)}")
        wanted = None if client_ids is None else sorted(set(client_ids) & set(manifest.clients))
        buckets = None if wanted is None else {bucket_of(client_id) for client_id in wanted}
        files = [f for f in manifest.files[table] if buckets is None or f.bucket in buckets]
        key = TABLE_KEYS[table]
        # The key is read for the order even where it was not asked for.
        needed = list(dict.fromkeys([*chosen, *key]))

        def scan(files: list[StoredFile], names: list[str]) -> pl.DataFrame:
            return self._scan(files, wanted).select(names).collect()

        rows = scan(files, needed) if any(f.rows for f in files) else empty_of(schema, needed)
        live = self._live_segments(manifest, buckets, scan)
        if not (in_order or live):
            return rows.select(chosen)
        parts = [leave_out(rows, [keys for _, keys in live])]
        for place, (segment, keys) in enumerate(live):
            own = [f for f in segment.files.get(table, []) if f.rows]
            if own:
                counted = leave_out(keys, [later for _, later in live[place + 1 :]])
                parts.append(scan(own, needed).join(counted, on=LEAD_KEY, how="semi"))
        return sort_rows(merge_leads([sort_rows(p, key) for p in parts], key), key).select(chosen)

    def _scan(self, files: list[StoredFile], wanted: Collection[str] | None) -> pl.LazyFrame:
        urls = [self._files.url_of(file.path) for file in files if file.rows]
        rows = pl.scan_parquet(urls, storage_options=self._files.scan_options, glob=False)
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
                keys = scan(segment.keys, list(SEGMENT_SCHEMA))
                live.append(
                    (segment, keys.filter(pl.col("bucket").is_in(counted)).select(LEAD_KEY))
                )
        return live

    @contextmanager
    def write(self, *, force: bool = False) -> Iterator[FeatureWriter]:
        """A writer for one new version; nothing is visible until its ``commit``.

        Args:
            force: accept that a table loses more than half of its rows.

        Raises:
            ConflictError: another process writes now, or committed in between.
        """
        with self._files.locked():
            manifest, version = self._load()
            writer = FeatureWriter(self._files, manifest, version, force=force)
            try:
                yield writer
            except BaseException:
                writer.discard()
                raise
            if not writer.is_committed:
                writer.discard()

    def detached_writer(self) -> FeatureWriter:
        """A writer that starts from nothing and never commits; another adopts what it wrote."""
        return FeatureWriter(self._files, Manifest(), None, force=True)

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
        with self._files.locked():
            manifest, version = self._load()
            # Listed before the commit: whoever wrote these builds on a version that the commit
            # ends. A file that appears later belongs to a version after ours.
            old = [path for path, _ in self._files.listed()]
            writer = FeatureWriter(self._files, manifest, version, force=True)
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
            marks = (f"/b{bucket:02d}-", SEGMENT_MARK)
            stale = [p for p in old if any(m in f"/{p}" for m in marks) and p not in named]
            if stale:
                self._files.delete(stale)
        return removed

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file of the store, named by the manifest or not.

        Raises:
            InputError: the store cannot be listed.
        """
        sizes = self._files.sizes()
        return {path: size for path, size in sizes.items() if path != MANIFEST_PATH}

    def list_orphans(self, manifest: Manifest, now: float) -> tuple[list[str], list[str]]:
        """Files that no kept version names: those to collect, and those a writer may be using.

        Args:
            manifest: The current version.
            now: Seconds since 1970, as the store's own clock tells them.
        """
        named = {file.path for file in manifest.all_files()} | set(manifest.previous_paths)
        found = self._files.listed()
        strange = sorted((path, changed) for path, changed in found if path not in named)
        old = [path for path, changed in strange if changed < now - ORPHAN_SECONDS]
        return old, [path for path, _ in strange if path not in old]

    def find_damaged(self, manifest: Manifest) -> dict[str, str]:
        """What is wrong with each file whose bytes are not those the manifest tells of."""
        files = manifest.all_files()

        def check(file: StoredFile) -> str | None:
            found = self._files.get(file.path)
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
        urls = {self._files.url_of(file.path): file.path for file in manifest.all_files()}

        def scan(files: list[StoredFile], columns: list[str]) -> pl.DataFrame:
            readable = [f for f in files if f.rows and f.path not in except_]
            if not readable:
                return pl.DataFrame(schema={**SEGMENT_SCHEMA, "__url": pl.String()}).select(columns)
            rows = pl.scan_parquet(
                [self._files.url_of(file.path) for file in readable],
                storage_options=self._files.scan_options,
                glob=False,
                include_file_paths="__url",
            )
            return rows.select(columns).collect()

        live = self._live_segments(manifest, None, scan)
        needed = [*LEAD_KEY, "__url"]
        parts = [leave_out(scan(manifest.files.get(table, []), needed), [k for _, k in live])]
        for place, (segment, keys) in enumerate(live):
            counted = leave_out(keys, [later for _, later in live[place + 1 :]])
            rows = scan(segment.files.get(table, []), needed)
            parts.append(rows.join(counted, on=LEAD_KEY, how="semi"))
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
        with self._files.locked():
            try:
                self._load()
            except InputError:
                self._files.delete([MANIFEST_PATH])
                return True
        return False

    def scan_file(self, path: str) -> pl.LazyFrame:
        """One file of the store as it lies there; nothing is read yet."""
        return pl.scan_parquet(
            self._files.url_of(path), storage_options=self._files.scan_options, glob=False
        )

    def url_of(self, path: str) -> str:
        """Where a file of the store lies, fit for a message."""
        return self._files.url_of(path)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: a file is missing or differs.
        """
        manifest = self.load_manifest()
        for file in manifest.all_files():
            self._files.read_checked(file)
