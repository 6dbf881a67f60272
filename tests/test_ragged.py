"""A ragged column is a list of lists: every way in, out and through it gives what lists give."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gift.project.ragged import Ragged, ranges

LISTS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=8)


def lists(column: Ragged) -> list[list[Any]]:
    return [column[row].tolist() for row in range(len(column))]


@given(LISTS, st.lists(st.integers(0, 8), max_size=3))
def test_lists_in_arrow_and_back(rows: list[list[int]], cuts: list[int]) -> None:
    """However the column is cut into chunks, whole or sliced."""
    column = Ragged.of(rows, np.int32)
    assert (lists(column), column.lengths.tolist()) == (rows, [len(row) for row in rows])
    assert (column.values.dtype, column.offsets.dtype) == (np.int32, np.int64)
    arrow = column.to_arrow()
    assert arrow.equals(pa.array(rows, pa.list_(pa.int32())))
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    chunks = [arrow.slice(a, b - a) for a, b in pairwise(ends)]
    found = Ragged.from_arrow(pa.chunked_array(chunks))
    assert (lists(found), found.values.dtype, found.offsets.dtype) == (rows, np.int32, np.int64)


@given(LISTS.filter(bool), st.data())
def test_take_is_that_of_lists(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=12))
    assert lists(Ragged.of(rows, np.int32).take(chosen)) == [rows[row] for row in chosen]


def test_rows_that_are_not_there() -> None:
    column = Ragged.of([[1], [2, 3]], np.int32)
    assert column[-1].tolist() == [2, 3]
    for row in (2, -3):
        with pytest.raises(IndexError):
            column[row]
        with pytest.raises(IndexError):
            column.take([row])


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), max_size=8))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    found = ranges([start for start, _ in pairs], [length for _, length in pairs])
    assert found.tolist() == [start + step for start, length in pairs for step in range(length)]


def test_one_chunk_is_not_copied() -> None:
    array = pa.array([[1, 2], [3], [4, 5]], pa.list_(pa.int32()))
    for chunk in (array, array.slice(1)):
        values = Ragged.from_arrow(pa.chunked_array([chunk])).values
        assert np.shares_memory(values, array.values.to_numpy())
    assert np.shares_memory(pa.array(values).to_numpy(), values)
