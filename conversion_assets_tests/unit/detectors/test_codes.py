from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.detectors import codes
from conversion_assets.detectors.codes import combine, count_codes, encode, split

COLUMNS = st.one_of(
    st.lists(st.none() | st.text(max_size=3)).map(lambda v: pl.Series(v, dtype=pl.String)),
    st.lists(st.none() | st.booleans()).map(lambda v: pl.Series(v, dtype=pl.Boolean)),
    st.lists(st.none() | st.integers(-3, 9)).map(lambda v: pl.Series(v, dtype=pl.Int8)),
    st.lists(st.none() | st.integers(-(2**62), 2**62)).map(lambda v: pl.Series(v, dtype=pl.Int64)),
    st.lists(st.none() | st.floats(allow_nan=False)).map(lambda v: pl.Series(v, dtype=pl.Float64)),
)


@given(COLUMNS)
def test_codes_stand_for_the_values_in_their_order(column):
    coded = encode(column)
    assert coded.values.gather(coded.codes).to_list() == column.to_list()
    assert coded.values[0] is None
    known = coded.values[1:].to_list()
    assert known == sorted(set(known), key=_key)
    assert coded.radix == len(known) + 1


def _key(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 3))))
def test_combined_codes_come_apart_and_sort_as_they_did(rows):
    radices = [3, 7, 4]
    digits = [
        (np.array([row[place] for row in rows], dtype=np.int64), radix)
        for place, radix in enumerate(radices)
    ]
    number, size = combine(digits)
    assert size == 84
    parts = split(number, radices)
    assert [tuple(row) for row in np.array(parts).T.tolist()] == rows
    by_number = [rows[place] for place in np.argsort(number, kind="stable")]
    assert by_number == sorted(rows)


def test_more_combinations_than_fit_are_refused():
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(OverflowError, match="62 bits"):
        combine([(one, 2**40), (one, 2**40)])


@pytest.mark.parametrize("is_dense", [True, False])
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans())))
def test_counting_by_place_and_by_sorting_agree_with_a_loop(is_dense, rows):
    number = np.array([code for code, _ in rows], dtype=np.int64)
    outcome = np.flatnonzero([happened for _, happened in rows])
    size = 31 if is_dense else codes.DENSE_NUMBERS + codes.DENSE_NUMBERS_PER_ROW * len(rows) + 1
    found, n, k = count_codes(number, size, outcome)
    expected = Counter(code for code, _ in rows)
    converted = Counter(code for code, happened in rows if happened)
    assert found.tolist() == sorted(expected)
    assert n.tolist() == [expected[code] for code in found.tolist()]
    assert k.tolist() == [converted[code] for code in found.tolist()]
