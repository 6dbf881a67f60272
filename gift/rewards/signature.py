"""The signatures of reward functions: settings are keyword-only arguments, or a section; verl's as TRL's."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import create_model

from gift.project.errors import UserError
from gift.project.sections import Section, check
from gift.rewards.text import Completions, completion_text

Taken = ParamSpec("Taken")
Returned = TypeVar("Returned")
VERL_ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")


def takes(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The function, whose `settings` are a section, with the section's fields as keyword-only arguments instead.

    Wrong settings, and any other `UserError` of the function, are the error of every row; a call with no rows raises.
    """
    rules = get_type_hints(function)["settings"]
    fields = inspect.signature(rules).parameters

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


def from_verl(compute_score: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A reward with TRL's signature around verl's, which returns a number or a dict with "score" (NaiveRewardManager).

    Columns: `data_source`; the ground truth in `reward_model` (a struct with `ground_truth`) or in `ground_truth`;
    `extra_info`, or {}. An exception is the row's own.
    """

    def reward(
        prompts: Any, completions: Completions, completion_ids: Any, data_source: Sequence[str], **columns: Any
    ) -> list[Any]:
        none = [None] * len(completions)
        extra = [each or {} for each in columns.get("extra_info", none)]
        models, others = columns.get("reward_model", none), columns.get("ground_truth", none)
        truths = [
            model["ground_truth"] if isinstance(model, dict) and "ground_truth" in model else other
            for model, other in zip(models, others, strict=True)
        ]
        rows = zip(data_source, map(completion_text, completions), truths, extra, strict=True)
        return [_score(compute_score, **dict(zip(VERL_ARGUMENTS, row, strict=True))) for row in rows]

    return reward


def _score(compute_score: Callable[..., Any], ground_truth: Any, **arguments: Any) -> Any:
    if ground_truth is None:
        return ValueError("the ground truth is null")
    try:
        score = compute_score(ground_truth=ground_truth, **arguments)
    except (MemoryError, TimeoutError):
        raise
    except Exception as error:
        text = str(error)
        return RuntimeError(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return score["score"] if isinstance(score, dict) and "score" in score else score
