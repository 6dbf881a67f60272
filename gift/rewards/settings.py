"""Settings of a reward against their rules, and a column of the prompts table that hides one."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from pydantic import create_model

from gift.project.errors import UserError
from gift.project.sections import Section, check

Rules = TypeVar("Rules", bound=Section)


def check_settings(rules: type[Rules], function: str, values: dict[str, Any], lists: tuple[str, ...] = ()) -> Rules:
    """The settings of a function as typed values, or a `UserError` with a line for each wrong one.

    Columns reach a function by their names, as lists. So a list where no setting of `lists` is one, is a column.
    """
    for key, value in values.items():
        if isinstance(value, list) and key not in lists:
            raise UserError(
                f"{function}: the prompts table has a column '{key}', which hides the setting of that name; rename it "
                "in prepare.columns"
            )
    return check(rules, values, f"{function}: settings", joint=".")


def wrong_settings(function: Callable[..., Any], values: dict[str, Any]) -> str | None:
    """What is wrong with the settings of one of our functions by the types of its keyword-only arguments, or None.

    Nothing is converted: YAML 1.2 reads `no` as a text, which would count as true.
    """
    types = get_type_hints(function, include_extras=True)
    parameters = [each for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    fields: dict[str, Any] = {
        each.name: (types[each.name], ... if each.default is each.empty else each.default) for each in parameters
    }
    try:
        check(create_model(function.__name__, __base__=Section, **fields), values, "settings", joint=".")
    except UserError as problem:
        return problem.message
    return None
