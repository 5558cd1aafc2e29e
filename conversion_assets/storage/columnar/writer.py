"""Writing the next version of the columnar store: buckets, segments, and the one commit."""

import hashlib
import io
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import polars as pl

from conversion_assets.domain.errors import InputError, SuspiciousReadError
from conversion_assets.storage.columnar.files import StoreFiles
from conversion_assets.storage.columnar.manifest import (
    ACTIVITY_KEY,
    DTYPES,
    FEATURE_TABLES,
    LEAD_KEY,
    MANIFEST_PATH,
    SEGMENT_MARK,
    SEGMENT_SCHEMA,
    TABLE_KEYS,
    TABLES,
    Manifest,
    Segment,
    StoredClient,
    StoredFile,
    Table,
    bucket_of,
    list_paths,
)
from conversion_assets.storage.columnar.rows import (
    compute_fingerprints,
    keep_rows,
    leave_out,
    merge_leads,
    sort_rows,
)
from conversion_assets.storage.fingerprints import (
    NO_ROWS,
    RowSums,
    move_sums,
    read_sums,
    sum_tables,
    write_sums,
)

ROW_GROUP_ROWS = 32_768
"""Smallest part that is read for one client; large enough for dictionaries to pay."""
MEAN_SEGMENTS = 3
"""Segments that count for a bucket on average before some buckets are rewritten whole. Writes that
concern all buckets then rewrite a sixth of them each, and none ever has more than eight."""
MOST_SEGMENTS = 7
"""Segments that count for a bucket before it is rewritten whatever the others have."""
ORPHAN_SECONDS = 86_400.0
"""Files of a dead write are kept this long, for they could belong to one still at work."""


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
        self, files: StoreFiles, base: Manifest, version: str | None, *, force: bool
    ) -> None:
        self.base = base
        self.is_committed = False
        self._files = files
        self._version = version
        self._force = force
        self._written: dict[tuple[Table, int], StoredFile | None] = {}
        self._segments = list(base.segments)
        self._parts: list[Segment] = []
        self._put_paths: list[str] = []
        self._keys: dict[tuple[str, ...], pl.DataFrame] = {}
        self._clients = dict(base.clients)
        self._columns: dict[str, dict[str, str]] = dict(base.columns)

    def hand_over(self) -> WrittenBuckets:
        """What a detached writer wrote; the files are whose who adopts them."""
        written, self._written = self._written, {}
        return WrittenBuckets(written, dict(self._clients), dict(self._columns))

    def adopt(self, found: WrittenBuckets) -> None:
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
        return merge_leads([part for part in parts if part.height], TABLE_KEYS[table])

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
            rows = keep_rows(some, leads, LEAD_KEY, "semi")
            if activities is None or rows.height == some.height:
                return rows
            others = some.join(leads, on=LEAD_KEY, how="anti")
            return pl.concat([rows, others.join(activities, on=ACTIVITY_KEY, how="semi")])

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
        schema = {name: DTYPES[text] for name, text in self._columns.get(table, {}).items()}
        rows = read(own) if own else pl.DataFrame(schema=schema)
        live = []
        for segment in self._segments:
            counted = [bucket for bucket in segment.buckets if bucket in buckets]
            if counted:
                keys = self._read_keys(segment).filter(pl.col("bucket").is_in(counted))
                live.append((segment, keys.select(LEAD_KEY)))
        parts = [leave_out(rows, [keys for _, keys in live])]
        for place, (segment, keys) in enumerate(live):
            if table in segment.files:
                counted_keys = leave_out(keys, [later for _, later in live[place + 1 :]])
                part = read(segment.files[table]).join(counted_keys, on=LEAD_KEY, how="semi")
                parts.append(part.select(rows.columns) if own else part)
        return parts if own or len(parts) == 1 else parts[1:]

    def _read_keys(self, segment: Segment) -> pl.DataFrame:
        paths = tuple(file.path for file in segment.keys)
        if paths not in self._keys:
            self._keys[paths] = self._read(segment.keys)
        return self._keys[paths]

    def _open(self, files: list[StoredFile]) -> pl.LazyFrame:
        found: list[Any] = [io.BytesIO(self._files.read_checked(file)) for file in files]
        return pl.scan_parquet(found)

    def _read(self, files: list[StoredFile]) -> pl.DataFrame:
        return pl.concat([pl.read_parquet(io.BytesIO(self._files.read_checked(f))) for f in files])

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
            raise InputError(f"store {self._files.url}: a client is not of bucket {bucket}")
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
                stated = self.base.columns.get(table) or dict.fromkeys(TABLE_KEYS[table], "String")
                rows = pl.DataFrame(schema={name: DTYPES[text] for name, text in stated.items()})
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
            raise InputError(f"store {self._files.url}: {table} has rows of {strangers[0]} too")
        self._declare(table, rows.schema)
        before = self.read_bucket(table, bucket)
        whole = rows
        if before is not None:
            others = before.filter(~pl.col("client_id").is_in(list(client_ids)))
            # A new feature version has other columns, and then replaces every client.
            whole = pl.concat([others, rows]) if others.height else rows
        whole = sort_rows(whole, TABLE_KEYS[table])
        is_same = before is not None and whole.equals(before) and whole.schema == before.schema
        if is_same and not is_due:
            return
        superseded = self._written.get((table, bucket))
        if before is not None or whole.height:
            self._written[table, bucket] = self._put(table, bucket, whole)
        if superseded is not None:
            self._files.delete([superseded.path])

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
            strange = after[table].join(leads, on=LEAD_KEY, how="anti")
            if strange.height:
                raise InputError(f"store {self._files.url}: {table} has rows of other leads too")
        owners = leads["client_id"].unique().sort()
        numbers = pl.Series([bucket_of(client_id) for client_id in owners], dtype=pl.Int8)
        placed = pl.DataFrame({"client_id": owners, "bucket": numbers})
        keys = leads.select(LEAD_KEY).unique().join(placed, on="client_id").sort(LEAD_KEY)
        rows: dict[str, pl.DataFrame] = {"keys": keys.select(SEGMENT_SCHEMA.keys())}
        rows |= {t: sort_rows(after[t], TABLE_KEYS[t]) for t in TABLES if after[t].height}
        # Some wait for the disk while others are encoded and the rows are hashed.
        with ThreadPoolExecutor(len(rows)) as pool:
            put = {name: pool.submit(self._put_segment, name, part) for name, part in rows.items()}
            come = sum_tables({table: after[table] for table in TABLES})
        files = {name: future.result() for name, future in put.items()}
        if gone == come:
            # Rows may be read again that were read before; that is no reason for a version.
            self._files.delete([file.path for file in files.values()])
            return
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
                kept = {t: rows.join(left, on=LEAD_KEY, how="semi") for t, rows in files.items()}
                purged.append(
                    Segment(
                        buckets=segment.buckets,
                        keys=[self._put_segment("keys", left)],
                        files={
                            table: [self._put_segment(table, sort_rows(rows, TABLE_KEYS[table]))]
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
        file = self._put_rows(f"{folder}{SEGMENT_MARK}", rows, None)
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
        self._files.put_new(path, data)
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
        self._files.replace(MANIFEST_PATH, data, self._version)
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
            previous_paths=list_paths(self.base.model_dump()) or self.base.previous_paths,
            clients=dict(sorted(self._clients.items())),
            zones=dict(sorted(zones.items())),
        )

    def discard(self) -> None:
        """Remove files that were written for a version that will not be."""
        paths = [file.path for file in self._written.values() if file is not None]
        paths += self._put_paths
        if paths and not self.is_committed:
            self._files.delete(paths)

    def _collect(self, manifest: Manifest) -> None:
        """Remove files that the last two versions do not name and that no writer can be using."""
        named = {file.path for file in manifest.all_files()} | set(manifest.previous_paths)
        oldest = time.time() - ORPHAN_SECONDS
        gone = [
            path for path, changed in self._files.listed() if path not in named and changed < oldest
        ]
        if gone:
            self._files.delete(gone)


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
