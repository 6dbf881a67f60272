"""A column of lists of numbers as two arrays: all values one after the other, and where each row begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, DTypeLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """values: [N], row after row. offsets: int64 [rows + 1]; row i is values[offsets[i] : offsets[i + 1]]."""

    values: NDArray[Any]
    offsets: Ints

    @staticmethod
    def of(rows: Sequence[ArrayLike], dtype: DTypeLike) -> "Ragged":
        """Rows given one by one, as lists or arrays."""
        arrays = [np.empty(0, dtype), *(np.asarray(row, dtype) for row in rows)]
        return Ragged(np.concatenate(arrays), np.cumsum([len(array) for array in arrays]))

    @staticmethod
    def from_arrow(column: pa.ChunkedArray) -> "Ragged":
        """A column of lists; the values are Arrow's own memory (read-only) where the column is one chunk."""
        lengths = pc.list_value_length(column).to_numpy()
        return Ragged(pc.list_flatten(column).to_numpy(), np.append(0, np.cumsum(lengths, dtype=np.int64)))

    def to_arrow(self) -> pa.ListArray:
        """The same as an Arrow list array, without a copy of the values."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        start = self.offsets[:-1][row]
        return self.values[start : start + self.lengths[row]]

    @cached_property
    def lengths(self) -> Ints:
        """int64 [rows]."""
        return np.diff(self.offsets)

    def take(self, rows: Sequence[int] | Ints) -> "Ragged":
        """Some rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        values = self.values[ranges(self.offsets[:-1][chosen], lengths)]
        return Ragged(values, np.append(0, np.cumsum(lengths)))


def ranges(starts: Sequence[int] | Ints, lengths: Sequence[int] | Ints) -> Ints:
    """starts[0], starts[0] + 1, ... (lengths[0] numbers), then those of the next start; int64 [sum of lengths]."""
    first, counts = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    before = np.repeat(first - np.cumsum(counts) + counts, counts)
    return before + np.arange(len(before))
