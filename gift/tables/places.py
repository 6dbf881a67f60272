"""Rows of a table as places of groups, all as large as the largest: where a group has fewer rows, places stay empty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gift.project.ragged import Ints, Ragged

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Places:
    """num_groups, size: P and G. of_rows: int64 [rows], group * G + sample of each row, ascending."""

    num_groups: int
    size: int
    of_rows: Ints

    @staticmethod
    def of(table: pa.Table) -> "Places":
        """Of a table whose groups stand one after the other, each from sample 0 on."""
        samples = table["sample"].to_numpy().astype(np.int64)
        group, size = np.cumsum(samples == 0) - 1, int(samples.max()) + 1
        return Places(int(group[-1]) + 1, size, group * size + samples)

    @property
    def number(self) -> int:
        """P * G."""
        return self.num_groups * self.size

    def spread(self, values: ArrayLike, empty: Any) -> NDArray[Any]:
        """Values of rows [rows, ...] in their places [P, G, ...]; `empty` where no row is."""
        array = np.asarray(values)
        if len(array) < self.number:
            array, rows = np.full((self.number, *array.shape[1:]), empty, array.dtype), array
            array[self.of_rows] = rows
        return array.reshape(self.num_groups, self.size, *array.shape[1:])

    def listed(self, values: Sequence[T]) -> list[T | None]:
        """Any values of rows in their places [P * G]; None where no row is."""
        found: list[T | None] = [None] * self.number
        for place, value in zip(self.of_rows.tolist(), values, strict=True):
            found[place] = value
        return found

    def lists(self, column: Ragged) -> Ragged:
        """Lists of rows in their places [P * G]; an empty list where no row is."""
        if len(column) == self.number:
            return column
        lengths = self.spread(column.lengths, 0).ravel()
        return Ragged(column.values, np.append(0, np.cumsum(lengths)))
