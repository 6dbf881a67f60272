"""Columns of a source under our names: renamed, taken from inside others, left out; a missing one is one line."""

import math
from decimal import Decimal
from typing import Any

from gift.project.errors import wrong_param
from gift.prompts.settings import Rows

MISSING = object()
SHAPE_WIDTH = 300


def map_rows(rows: list[dict[str, Any]], settings: Rows, key: str) -> list[dict[str, Any]]:
    """The rows under our names, all with the same columns (null where a row has none); checked first.

    A column that `columns` names keeps only its new name. One that it looks into (`answer: reward_model.ground_truth`)
    stays, unless what was found gets its name (`prompt: prompt.0.content`). Numbers of `as_text` are texts.
    `key` is where params.yaml describes these rows, such as 'prepare'.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    _check_columns(rows, names, settings, key)
    taken = {*settings.columns.values(), *settings.drop, *settings.columns}
    kept = [name for name in names if name not in taken]
    mapped = []
    for row in rows:
        named = {
            ours: row.get(theirs) if theirs in names else look_into(row, theirs, missing=None)
            for ours, theirs in settings.columns.items()
        }
        mapped.append(named | {name: row.get(name) for name in kept})
    for name in settings.as_text:
        if name not in mapped[0]:
            raise wrong_param(f"{key}.as_text", name, f"there is no such column; there are {', '.join(mapped[0])}")
        for each in mapped:
            each[name] = as_text(each[name], name, key)
    return mapped


def as_text(value: Any, name: str, key: str) -> str | None:
    """A number as a text: 72 and 72.0 are "72", true is "true"; null and NaN stay null. A list or struct is refused."""
    if value is None or isinstance(value, str) or (isinstance(value, float) and math.isnan(value)):
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    raise wrong_param(
        f"{key}.as_text", name, f"a row has {shape(value)} there; only numbers, true and false become texts"
    )


def look_into(row: dict[str, Any], path: str, missing: Any = MISSING) -> Any:
    """The value at a path of names and list positions, such as `reward_model.ground_truth` or `prompt.0.content`."""
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return missing
    return value


def shape(value: Any) -> str:
    """What a value looks like: `{answer: text, choices: list of 4 text}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shape(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return f"list of {len(value)}" + (f" {shape(value[0])}" if value else "")
    return {str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _check_columns(rows: list[dict[str, Any]], names: list[str], settings: Rows, key: str) -> None:
    """Every column that params.yaml names exists, and none gets the name of another."""
    first = shape(rows[0])
    cut = first if len(first) <= SHAPE_WIDTH else f"{first[:SHAPE_WIDTH]}..."
    there = f"{', '.join(names)}; its first row is {cut}"
    for ours, theirs in settings.columns.items():
        where = f"{key}.columns.{ours}"
        if theirs not in names and all(look_into(row, theirs) is MISSING for row in rows):
            raise wrong_param(where, theirs, f"the source has no such column; it has {there}")
        goes = {*settings.columns.values(), *settings.drop} | (set() if theirs in names else {theirs.split(".")[0]})
        if ours in names and ours not in goes:
            remedy = f"map that one to another name, or add it to {key}.drop"
            raise wrong_param(where, theirs, f"the source has a column '{ours}' too; {remedy}")
    for name in settings.drop:
        if name not in names:
            raise wrong_param(f"{key}.drop", name, f"the source has no such column; it has {there}")
        if name in settings.columns.values():
            raise wrong_param(f"{key}.drop", name, f"{key}.columns maps it; remove one of the two lines")
