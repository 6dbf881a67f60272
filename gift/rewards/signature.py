"""The settings of a reward function: its keyword-only arguments, or one section that stands for them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import create_model

from gift.project.errors import UserError
from gift.project.sections import Section, check

Taken = ParamSpec("Taken")
Returned = TypeVar("Returned")


def takes(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The function, whose `settings` are a section, with the section's fields as keyword-only arguments instead.

    Wrong settings, and any other `UserError` of the function, are the error of every row; a call with no rows raises.
    """
    rules = get_type_hints(function)["settings"]
    fields = inspect.signature(rules).parameters  # a default made by a factory would be shown as such

    @functools.wraps(function)
    def reward(prompts: Any, *rows: Any, **columns: Any) -> list[Any]:
        values = {name: columns.pop(name) for name in fields if name in columns}
        try:
            section = check(rules, values, f"{function.__name__}: settings", joint=".")
            return function(prompts, *rows, settings=section, **columns)
        except UserError as problem:
            if not prompts:
                raise
            return [problem] * len(prompts)

    signature = inspect.signature(function)
    *others, last = (each for each in signature.parameters.values() if each.name != "settings")
    reward.__signature__ = signature.replace(parameters=[*others, *fields.values(), last])  # type: ignore[attr-defined]
    reward.rules = rules  # type: ignore[attr-defined]
    return reward


def checked(function: Callable[Taken, Returned]) -> Callable[Taken, Returned]:
    """The function, with a `ValueError` for settings that break the rules of their types."""

    @functools.wraps(function)
    def reward(*args: Taken.args, **columns: Taken.kwargs) -> Returned:
        values = {name: value for name, value in columns.items() if name in _rules(function).model_fields}
        if problem := wrong_settings(function, values):
            raise ValueError(problem)
        return function(*args, **columns)

    return reward


def wrong_settings(function: Callable[..., Any], values: dict[str, Any]) -> str | None:
    """What is wrong with the settings of one of our functions by their types, or None."""
    try:  # nothing is converted: YAML 1.2 reads `no` as a text, which would count as true
        check(_rules(function), values, "settings", joint=".")
    except UserError as problem:
        return problem.message
    return None


@functools.cache
def _rules(function: Callable[..., Any]) -> type[Section]:
    """The section that a function takes, or one made of its keyword-only arguments."""
    if hasattr(function, "rules"):
        return function.rules
    types = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        each.name: (types[each.name], ... if each.default is each.empty else each.default)
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    }
    return create_model(function.__name__, __base__=Section, **fields)
