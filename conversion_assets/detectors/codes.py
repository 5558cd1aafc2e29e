"""Columns as small whole numbers, and counting by them.

Group-bys on strings cost more than everything else in a refresh. Here a column is coded once, in
the order of its values with null first, so that codes sort as values do; several columns make one
number by mixed radix; and counting is `bincount` where the numbers are dense, a sort where not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Digit = tuple[NDArray[np.integer[Any]], int]
"""One code per row, and the radix: how many codes there are."""

# Counting by place touches every possible number: worth it up to this many a row, and for any
# table that fits the processor's cache.
DENSE_NUMBERS_PER_ROW = 4
DENSE_NUMBERS = 1 << 18
LARGEST_NUMBER = 1 << 62


@dataclass(frozen=True)
class Codes:
    """A column in codes.

    Attributes:
        codes: Code of each row, 0..len(values)-1, shape (rows,), in the narrowest type that holds
            them: a large client has sixty coded columns in memory at once.
        values: Value of each code: null first, then ascending.
    """

    codes: NDArray[np.unsignedinteger[Any]]
    values: pl.Series

    @property
    def radix(self) -> int:
        """How many codes there are."""
        return len(self.values)


def _narrow(codes: Ints, values: pl.Series) -> Codes:
    return Codes(codes.astype(np.min_scalar_type(max(len(values) - 1, 0))), values)


def encode(column: pl.Series) -> Codes:
    """Code a column: equal values get equal codes, and codes are in the order of the values.

    Example:
        >>> coded = encode(pl.Series(["b", None, "a", "b"]))
        >>> coded.codes.tolist(), coded.values.to_list()
        ([2, 0, 1, 2], [None, 'a', 'b'])
    """
    if column.dtype == pl.Boolean:
        return _encode_span(column.cast(pl.Int64), 0, 1, pl.Boolean())
    if column.dtype.is_integer():
        low, high = column.min(), column.max()
        if low is None:
            return _encode_span(column.cast(pl.Int64), 0, -1, column.dtype)
        assert isinstance(low, int) and isinstance(high, int)  # noqa: S101, PT018 - for the types
        if high - low < max(DENSE_NUMBERS, len(column)):
            return _encode_span(column.cast(pl.Int64), low, high, column.dtype)
    return _encode_distinct(column)


def _encode_span(column: pl.Series, low: int, high: int, dtype: pl.DataType) -> Codes:
    """Whole numbers of a narrow range: the code is the distance from the lowest."""
    span = pl.Series([None, *range(low, high + 1)], dtype=pl.Int64)
    codes = (column - (low - 1)).fill_null(0).to_numpy()
    return _narrow(codes, span.cast(dtype).rename(column.name))


def _encode_distinct(column: pl.Series) -> Codes:
    """Anything else: number the distinct values, then put the numbers into the values' order."""
    if column.dtype == pl.String:
        return _encode_texts(column)
    values = column.unique().drop_nulls().sort()
    codes = column.rank("dense").cast(pl.Int64).fill_null(0).to_numpy()
    return _narrow(codes, _with_nothing(values, column.name))


def _encode_texts(column: pl.Series) -> Codes:
    # Categories of its own: the shared ones would number every text the process ever saw.
    texts = column.cast(pl.Categorical(pl.Categories.random()))
    # Texts are numbered as they come; the number behind the last stands for null.
    number = texts.to_physical().cast(pl.UInt32)
    last = number.max()
    assert last is None or isinstance(last, int)  # noqa: S101 - for the types
    count = 0 if last is None else last + 1
    place = number.fill_null(count).to_numpy()
    row_of = np.zeros(count + 1, dtype=np.int64)
    row_of[place] = np.arange(place.size)
    seen = column.gather(row_of[:count])
    order = seen.arg_sort().to_numpy()
    code_of = np.zeros(count + 1, dtype=np.min_scalar_type(count))
    code_of[order] = np.arange(1, count + 1)
    return Codes(code_of[place], _with_nothing(seen.gather(order), column.name))


def _with_nothing(values: pl.Series, name: str) -> pl.Series:
    """The values behind a null, which has code 0."""
    nothing = values.clear().extend_constant(None, 1)
    return pl.concat([nothing, values]).rename(name)


def combine(digits: Sequence[Digit]) -> tuple[Ints, int]:
    """One number from several codes, the first the most significant.

    Args:
        digits: Codes and their radices; at least one.

    Returns:
        The numbers, shape (rows,), and how many there can be.

    Raises:
        OverflowError: there can be more than fit into 62 bits.
    """
    first, size = digits[0]
    number = first.astype(np.int64)
    for codes, radix in digits[1:]:
        size *= radix
        number *= radix
        number += codes
    if size > LARGEST_NUMBER:
        raise OverflowError(f"{size} combinations of codes do not fit into 62 bits")
    return number, size


def split(number: Ints, radices: Sequence[int]) -> list[Ints]:
    """The codes that `combine` made a number of, given their radices.

    Example:
        >>> number, _ = combine([(np.array([1]), 2), (np.array([3]), 5)])
        >>> [codes.tolist() for codes in split(number, [2, 5])]
        [[1], [3]]
    """
    parts = []
    for radix in reversed(radices):
        parts.append(number % radix)
        number = number // radix
    return parts[::-1]


def find_distinct(number: Ints, size: int) -> tuple[Ints, Ints]:
    """The numbers that occur, and each row's place among them.

    Args:
        number: One number per row, 0..size-1.
        size: How many numbers there can be.

    Example:
        >>> occurring, place = find_distinct(np.array([7, 2, 7]), 9)
        >>> occurring.tolist(), place.tolist()
        ([2, 7], [1, 0, 1])
    """
    if size > max(DENSE_NUMBERS, DENSE_NUMBERS_PER_ROW * number.size):
        return np.unique(number, return_inverse=True)
    occurring = np.flatnonzero(np.bincount(number, minlength=size))
    place = np.zeros(size, dtype=np.int64)
    place[occurring] = np.arange(occurring.size)
    return occurring, place[number]


def count_codes(number: Ints, size: int, converted: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows and conversions of each number that occurs.

    Args:
        number: One number per row, 0..size-1.
        size: How many numbers there can be.
        converted: Places of the rows that converted, few of all.

    Returns:
        The numbers that occur, ascending, and their rows and conversions.

    Example:
        >>> occurring, n, k = count_codes(np.array([3, 1, 3]), 5, np.array([2]))
        >>> occurring.tolist(), n.tolist(), k.tolist()
        ([1, 3], [1, 2], [0, 1])
    """
    if size <= max(DENSE_NUMBERS, DENSE_NUMBERS_PER_ROW * number.size):
        rows = np.bincount(number, minlength=size)
        occurring = np.flatnonzero(rows)
        return occurring, rows[occurring], np.bincount(number[converted], minlength=size)[occurring]
    counted = pl.Series("number", number).value_counts().sort("number")
    occurring, rows = counted["number"].to_numpy(), counted["count"].cast(pl.Int64).to_numpy()
    place = np.searchsorted(occurring, number[converted])
    return occurring, rows, np.bincount(place, minlength=occurring.size)
