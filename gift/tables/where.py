"""`where`: columns of the prompts, each with the values that a row must have in it."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator


def _plain(wanted: Any) -> Any:
    values = wanted if isinstance(wanted, list) else [wanted]
    plain = all(each is None or isinstance(each, str | int | float) for each in values)
    if not values or not plain or any(isinstance(each, float) and not math.isfinite(each) for each in values):
        raise ValueError("must be a text, a number, true, false, null, or a list of at least one of these")
    return wanted


Where = dict[str, Annotated[Any, AfterValidator(_plain)]]
"""Columns, each with a value or a list of values: all of them must hold one of theirs."""


def is_one_of(value: Any, wanted: Any) -> bool:
    """Whether a cell holds what a `Where` wants of its column; true is not 1, and a text is not a number."""
    values = wanted if isinstance(wanted, list) else [wanted]
    return any(isinstance(value, bool) == isinstance(each, bool) and bool(value == each) for each in values)
