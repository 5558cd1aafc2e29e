"""Content hashes of rows that can be added and taken away.

Every row has a hash of 128 bits that depends on the names, types and values of its columns only; a
client's fingerprint is the sum of those of its rows, modulo 2**64 in each half. Sums forget order
and history, so a refresh that replaces some rows subtracts theirs and adds the new ones, and comes
to what hashing everything anew would give. (Bellare and Micciancio 1997 call this the paradigm of
randomise, then combine. Rows are mixed by the finaliser of SplitMix64, Steele et al. 2014: nobody
is kept from making two equal ones on purpose, which would only deceive himself.)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

Words = npt.NDArray[np.uint64]
Name = TypeVar("Name", bound=str)

LANES = 2
"""Sums of 64 bits each: two equal by chance among a million clients are one in 10**26."""
SLICE_ROWS = 32_768
"""Rows hashed at once: 256 KB a column, so that each pass finds them in the processor's cache."""
FEW_TEXTS = 8
"""A column of which each text comes this often is hashed by its distinct texts."""
_FLAG_BITS = 8
"""Flags of one look-up: a byte, and a table of 4 KB."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LENGTH = np.uint64(0xD6E8FEB86659FD93)
_LAST_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)


@dataclass(frozen=True)
class RowSums:
    """Rows of one table by client: how many, and the sum of their hashes in each lane."""

    rows: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[int, ...]] = field(default_factory=dict)


def sum_rows(frame: pl.DataFrame, table: str) -> RowSums:
    """Rows and sums of hashes of each client of a table.

    Args:
        frame: Rows with client_id, in any order; order of columns does not count.
        table: Its name, part of the hash.

    Example:
        >>> rows = pl.DataFrame({"client_id": ["a", "a"], "x": [1, 2]})
        >>> sum_rows(rows, "t") == sum_rows(rows.reverse(), "t")
        True
    """
    rows: dict[str, int] = {}
    sums: dict[str, tuple[int, ...]] = {}
    columns = _plan_columns(frame, table)
    for start in range(0, frame.height, SLICE_ROWS):
        part = frame.slice(start, SLICE_ROWS)
        total = np.zeros((LANES, part.height), dtype=np.uint64)
        columns.add_flags(total, part)
        columns.add_values(total, part)
        hashed = _mix(total)
        for client_id, first, stop in _runs(part["client_id"]):
            added = hashed[:, first:stop].sum(axis=1, dtype=np.uint64).tolist()
            before = sums.get(client_id, (0,) * LANES)
            sums[client_id] = tuple(_wrap(a + b) for a, b in zip(added, before, strict=True))
            rows[client_id] = rows.get(client_id, 0) + stop - first
    return RowSums(rows, sums)


def sum_tables(tables: Mapping[Name, pl.DataFrame]) -> dict[Name, RowSums]:
    """`sum_rows` of each table by its name."""
    return {table: sum_rows(rows, table) for table, rows in tables.items()}


def write_sums(tables: Iterable[tuple[int, ...]]) -> str:
    """Sums of some tables as one text of hexadecimal digits."""
    return "".join(f"{lane:016x}" for sums in tables for lane in sums)


def read_sums(text: str) -> list[tuple[int, ...]]:
    """What `write_sums` wrote.

    Example:
        >>> read_sums(write_sums([(1, 2), (3, 2**64 - 1)])) == [(1, 2), (3, 2**64 - 1)]
        True
    """
    lanes = [int(text[at : at + 16], 16) for at in range(0, len(text), 16)]
    return [tuple(lanes[at : at + LANES]) for at in range(0, len(lanes), LANES)]


def move_sums(
    before: tuple[int, ...], gone: tuple[int, ...], come: tuple[int, ...]
) -> tuple[int, ...]:
    """A sum after some rows went and others came."""
    return tuple(_wrap(b - g + c) for b, g, c in zip(before, gone, come, strict=True))


NO_ROWS = (0,) * LANES
"""The sum of nothing."""


def _wrap(value: int) -> int:
    return value % 2**64


def _seeds(table: str, name: str, dtype: pl.DataType) -> Words:
    text = json.dumps([table, name, str(dtype)])
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u8")[:LANES].copy()


def _mix(values: Words) -> Words:
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _runs(ids: pl.Series) -> list[tuple[str, int, int]]:
    """Client id, first row and row after the last of each run."""
    runs = ids.rle().struct.unnest()
    stops = runs["len"].cast(pl.Int64).cum_sum()
    return list(
        zip(runs["value"].to_list(), (stops - runs["len"]).to_list(), stops.to_list(), strict=True)
    )


def _nothing(seeds: Words) -> Words:
    """What stands for a null: no value of the column is mixed with this."""
    return _mix(seeds ^ _LENGTH)


@dataclass(frozen=True)
class _Columns:
    """How the columns of a table are hashed.

    Attributes:
        flags: Boolean columns without nulls, some together, and the sum of the hashes of each of
            their combinations, which is looked up for all of them at once.
        values: The other columns and their seeds.
        codes: Distinct texts of the columns of which there are few, and the hashes of these and
            of null.
        prepared: Reads the values as they are hashed, all columns in one pass.
        nulls: Finds nulls of the columns that have no code for them.
    """

    flags: list[tuple[list[str], Words]]
    values: dict[str, Words]
    codes: dict[str, Words]
    prepared: list[pl.Expr]
    nulls: list[pl.Expr]

    def add_flags(self, total: Words, part: pl.DataFrame) -> None:
        """Add the hashes of the flags of some rows."""
        for names, table in self.flags:
            bits = np.stack([part[name].to_numpy() for name in names])
            total += table[:, np.packbits(bits, axis=0, bitorder="little")[0]]

    def add_values(self, total: Words, part: pl.DataFrame) -> None:
        """Add the hashes of the other columns of some rows."""
        nulls = part.select(self.nulls)
        for column in part.select(self.prepared):
            if column.name in self.codes:
                total += self.codes[column.name][:, column.to_numpy()]
                continue
            hashed = _hash_values(column, self.values[column.name])
            if column.name in nulls.columns:
                hashed[:, nulls[column.name].to_numpy()] = _nothing(self.values[column.name])[
                    :, None
                ]
            total += hashed


def _plan_columns(frame: pl.DataFrame, table: str) -> _Columns:
    seeds = {name: _seeds(table, name, dtype) for name, dtype in frame.schema.items()}
    has_nulls = {column.name for column in frame if column.null_count()}
    flags = [n for n, dtype in frame.schema.items() if dtype == pl.Boolean and n not in has_nulls]
    values = {name: seed for name, seed in seeds.items() if name not in flags}
    texts = _list_texts(frame)
    codes = {}
    prepared = []
    nulls = []
    for name in values:
        column, dtype = pl.col(name), frame.schema[name]
        if name in texts:
            hashed = _hash_texts(texts[name], seeds[name])
            place = column.cast(pl.Enum(texts[name])).to_physical().cast(pl.UInt32)
        elif dtype == pl.Boolean:
            hashed = _hash_flag(seeds[name])
            place = column.cast(pl.UInt8)
        else:
            plain = column if dtype == pl.String else column.to_physical()
            whole = plain if dtype in (pl.String, pl.Float64) else plain.cast(pl.Int64)
            prepared.append(whole.fill_null("" if dtype == pl.String else 0))
            nulls += [column.is_null()] if name in has_nulls else []
            continue
        codes[name] = np.concatenate([hashed, _nothing(seeds[name])[:, None]], axis=1)
        prepared.append(place.fill_null(hashed.shape[1]))
    groups = [flags[at : at + _FLAG_BITS] for at in range(0, len(flags), _FLAG_BITS)]
    sums = [(names, _sum_flags([_hash_flag(seeds[name]) for name in names])) for names in groups]
    return _Columns(sums, values, codes, prepared, nulls)


def _hash_flag(seeds: Words) -> Words:
    """Hashes of false and true."""
    return np.stack([_mix(seeds + np.uint64(n)) for n in (1, 2)], axis=1)


def _sum_flags(hashes: list[Words]) -> Words:
    """Sum of the hashes of some flags for each combination of them, the first the lowest bit."""
    sums = np.zeros((LANES, 1), dtype=np.uint64)
    for hashed in hashes:
        sums = np.concatenate([sums + hashed[:, :1], sums + hashed[:, 1:]], axis=1)
    return sums


def _list_texts(frame: pl.DataFrame) -> dict[str, pl.Series]:
    """Distinct texts of each column in which nearly all are not different."""
    names = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    # Looking at a part is enough to tell ids from names.
    head = frame.select(names).head(SLICE_ROWS)
    counts = head.select(pl.all().n_unique()).row(0, named=True) if names else {}
    few = [name for name, count in counts.items() if count * FEW_TEXTS <= head.height]
    distinct = frame.select(pl.col(name).drop_nulls().unique().implode() for name in few)
    return {name: distinct[name].item() for name in few}


def _hash_values(column: pl.Series, seeds: Words) -> Words:
    """Hashes of texts or numbers, none of them null."""
    if column.dtype == pl.String:
        return _hash_texts(column, seeds)
    values = np.ascontiguousarray(column.to_numpy()).view(np.uint64)
    return _mix(values * _GOLDEN + seeds[:, None])


def _hash_texts(texts: pl.Series, seeds: Words) -> Words:
    """Hashes of texts, none of them null: eight bytes at a time, each told its place."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, at, given = array.buffers()
    starts = np.frombuffer(at, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    # Eight more bytes, so that eight can be read from the last place too.
    data = (b"" if given is None else given.to_pybytes()[: starts[-1]]) + bytes(8)
    word_at = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    sizes = np.diff(starts)
    words = np.maximum((sizes + 7) >> 3, 1)
    first = np.cumsum(words) - words
    place = np.arange(int(words.sum())) - np.repeat(first, words)
    left = np.minimum(np.repeat(sizes, words) - 8 * place, 8)
    read = word_at[np.repeat(starts[:-1], words) + 8 * place] & _LAST_BYTES[left]
    spread = place.astype(np.uint64) * _GOLDEN
    lanes = [np.add.reduceat(_mix(read ^ _mix(spread + seed)), first) for seed in seeds]
    return _mix(np.stack(lanes) + sizes.astype(np.uint64) * _LENGTH)


def join_sums(tables: Mapping[str, RowSums]) -> dict[str, str]:
    """Fingerprint of each client over some tables, in the order of the tables given."""
    ids = sorted({client_id for found in tables.values() for client_id in found.sums})
    return {
        client_id: write_sums(found.sums.get(client_id, NO_ROWS) for found in tables.values())
        for client_id in ids
    }
