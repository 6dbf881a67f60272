"""Which rows of a source stay: by value, by range, by length; every row that goes is counted under one filter."""

import math
from collections import Counter
from typing import Any

from gift.project.errors import UserError
from gift.prompts.files import Row
from gift.prompts.settings import Filters
from gift.tables.where import is_one_of


def keep_rows(rows: list[Row], filters: Filters, key: str) -> tuple[list[Row], Counter[str]]:
    """The rows that pass every filter, and for each filter (`where_level`) the number that it took.

    A row is counted at the first filter that refuses it: where, then range, then length, each in the order of
    params.yaml; where a range finds null or NaN, apart from the others, as `unknown_difficulty`. `key` is where
    params.yaml has them, such as 'prepare.filters'.
    """
    bounds: dict[str, dict[str, Any]] = {"where": filters.where, "range": filters.range, "length": filters.length}
    tests = [(kind, name, bound) for kind, of_kind in bounds.items() for name, bound in of_kind.items()]
    for kind, name, _ in tests:
        if name not in rows[0].values:
            there = ", ".join(rows[0].values)
            raise UserError(f"params.yaml: {key}.{kind}.{name}: there is no column '{name}'; there are {there}")
    kept: list[Row] = []
    taken = Counter({f"{kind}_{name}": 0 for kind, name, _ in tests})
    for row in rows:
        for kind, name, bound in tests:
            if not _passes(kind, name, bound, row, key):
                unknown = kind == "range" and is_unknown(row.values[name])
                taken[f"{'unknown' if unknown else kind}_{name}"] += 1
                break
        else:
            kept.append(row)
    if not kept:
        counts = ", ".join(_told(fate, count) for fate, count in taken.items() if count)
        raise UserError(f"params.yaml: {key}: no row of {len(rows)} is left: {counts}{_seen(rows, tests[0])}")
    return kept, taken


def _told(fate: str, count: int) -> str:
    kind, _, name = fate.partition("_")
    return f"{count} have null or NaN as {name}" if kind == "unknown" else f"{kind}.{name} took {count}"


def _passes(kind: str, name: str, bound: Any, row: Row, key: str) -> bool:
    value = row.values[name]
    if kind == "where":
        return is_one_of(value, bound)
    if kind == "range" and is_unknown(value):
        return False
    number = characters(value, name, row, key) if kind == "length" else _number(value, name, row, key)
    least, most = bound
    return (least is None or number >= least) and (most is None or number <= most)


def is_unknown(value: Any) -> bool:
    """Whether a cell stands for a number that nobody knows, which no range holds: null, or NaN as pandas writes it."""
    if isinstance(value, str):
        return value.strip().lower() in ("nan", "+nan", "-nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, name: str, row: Row, key: str) -> float:
    """A number, or the text of one as CSV has it."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise UserError(f"{row.where}: '{name}' is {value!r:.60}, no number; {key}.range.{name} needs one")


def characters(value: Any, name: str, row: Row, key: str) -> int:
    """Characters of a text, or of all messages of a chat; 0 for null."""
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("content"), str) for each in value
    ):
        return sum(len(each["content"]) for each in value)
    raise UserError(f"{row.where}: '{name}' is {value!r:.60}, neither text nor chat; {key}.length.{name} needs one")


def _seen(rows: list[Row], test: tuple[str, str, Any]) -> str:
    """The values that the first filter met, for a person who wrote 5 where the source has 'Level 5'."""
    kind, name, _ = test
    if kind == "length":
        return ""
    values = list(dict.fromkeys(repr(row.values[name]) for row in rows))
    return f"; the values of {name} are {', '.join(values[:5])}" + (", ..." if len(values) > 5 else "")
