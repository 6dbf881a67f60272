"""The total of a row: which components count in it, and with which weight."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
"""A number for each row; NaN where there is none."""


class Weighed(Protocol):
    """A component's weight, and its gate: another component without which it does not count."""

    @property
    def weight(self) -> float: ...
    @property
    def only_if(self) -> str | None: ...


class Term(NamedTuple):
    """A component as the metadata of a scores table hold it: `Term(**metadata["rewards"][name])`."""

    weight: float
    only_if: str | None = None


def counting(there: Mapping[str, Bools], opens: Mapping[str, Bools], terms: Mapping[str, Weighed]) -> dict[str, Bools]:
    """The rows in which each component counts: it is there itself and, where it has a gate, the gate opens."""
    return {name: there[name] & opens[term.only_if] if term.only_if else there[name] for name, term in terms.items()}


def counted(values: Mapping[str, Floats], terms: Mapping[str, Weighed]) -> dict[str, Bools]:
    """The rows in which each component counts: it has a value there, and its gate the value 1."""
    there = {name: ~np.isnan(values[name]) for name in terms}
    return counting(there, {name: values[name] == 1 for name in terms}, terms)


def gated(values: Mapping[str, Floats], terms: Mapping[str, Weighed]) -> dict[str, Floats]:
    """The components as they count: 0 where the gate is shut, NaN where there is no value."""
    counts = counted(values, terms)
    return {name: np.where(counts[name] | np.isnan(values[name]), values[name], 0.0) for name in terms}


def totals(values: Mapping[str, Floats], failed: Bools, terms: Mapping[str, Weighed]) -> list[float | None]:
    """The weighted sum of the components that count; None in `failed` rows and where none counts."""
    counts = counted(values, terms)
    products = [np.where(counts[name], term.weight * values[name], 0.0) for name, term in terms.items()]
    known = np.logical_or.reduce(list(counts.values())) & ~failed
    # math.fsum rounds once, so the order of the components does not matter.
    return [math.fsum(row) if is_known else None for is_known, *row in zip(known, *products, strict=True)]
