"""The rows of a source under our names, those of them that stay, and the prompt that each one makes."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from gift.project.errors import UserError, wrong_param
from gift.prompts.files import Row
from gift.prompts.settings import Filters, Prepare, Rows
from gift.tables.prompts import prompt_problem
from gift.tables.where import is_one_of

MISSING = object()
SHAPE_WIDTH = 300

Template = Callable[[Row], tuple[str, str]]
"""From a row under our names to the whole text, and the filled-in values alone."""


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
            each[name] = _as_text(each[name], name, key)
    return mapped


def _check_columns(rows: list[dict[str, Any]], names: list[str], settings: Rows, key: str) -> None:
    """Every column that params.yaml names exists, and none gets the name of another."""
    first = shape(rows[0])
    there = f"{', '.join(names)}; its first row is {first[:SHAPE_WIDTH]}{'...' if len(first) > SHAPE_WIDTH else ''}"
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


def _as_text(value: Any, name: str, key: str) -> str | None:
    """A number as a text: 72 and 72.0 are "72", true is "true"; null and NaN stay null. A list or struct is refused."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float | Decimal):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    problem = f"a row has {shape(value)} there; only numbers, true and false become texts"
    raise wrong_param(f"{key}.as_text", name, problem)


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
            unknown = kind == "range" and _is_unknown(row.values[name])
            if unknown or not _passes(kind, name, bound, row, key):
                taken[f"{'unknown' if unknown else kind}_{name}"] += 1
                break
        else:
            kept.append(row)
    if not kept:
        told = []
        for fate, count in (+taken).items():  # those that took any
            kind, _, name = fate.partition("_")
            told.append(f"{count} have null or NaN as {name}" if kind == "unknown" else f"{kind}.{name} took {count}")
        kind, name, _ = tests[0]
        if kind != "length":  # for a person who wrote 5 where the source has 'Level 5'
            seen = list(dict.fromkeys(repr(row.values[name]) for row in rows))
            told[-1] += f"; the values of {name} are {', '.join(seen[:5])}" + (", ..." if len(seen) > 5 else "")
        raise UserError(f"params.yaml: {key}: no row of {len(rows)} is left: {', '.join(told)}")
    return kept, taken


def _passes(kind: str, name: str, bound: Any, row: Row, key: str) -> bool:
    if kind == "where":
        return is_one_of(row.values[name], bound)
    size, (least, most) = _size(kind, name, row, key), bound
    return (least is None or size >= least) and (most is None or size <= most)


def _is_unknown(value: Any) -> bool:
    """Whether a cell stands for a number that nobody knows, which no range holds: null, or NaN as pandas writes it."""
    if isinstance(value, str):
        return value.strip().lower() in ("nan", "+nan", "-nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _size(kind: str, name: str, row: Row, key: str) -> float:
    """For `range` a number (CSV has it as text); for `length` characters of a text, of all messages, or 0 for null."""
    value = row.values[name]
    if kind == "range":
        needed = "no number"
        try:
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                return float(value)
        except ValueError:
            pass
    else:
        needed = "neither text nor chat"
        if value is None or isinstance(value, str):
            return len(value or "")
        if isinstance(value, list) and all(
            isinstance(each, dict) and isinstance(each.get("content"), str) for each in value
        ):
            return sum(len(each["content"]) for each in value)
    raise UserError(f"{row.where}: '{name}' is {value!r:.60}, {needed}; {key}.{kind}.{name} needs one")


def check_prompt_columns(names: list[str], has_template: bool, key: str) -> None:
    """One of the columns, under our names, is the prompt, and only one."""
    prompts = {"prompt", "messages"} & set(names)
    if has_template and "messages" in names:
        problem = "the source has messages already; remove the template, or map messages to another name"
        raise wrong_param(f"{key}.prompt_template", "", problem)
    if not has_template and not prompts:
        raise UserError(
            f"params.yaml: {key}.columns: nothing is the prompt; add 'prompt: <column>' (the source has "
            f"{', '.join(names)}), or set {key}.prompt_template"
            + ("; a CSV is separated by commas" if len(names) == 1 and ";" in names[0] else "")
        )
    if not has_template and len(prompts) == 2:
        raise UserError(
            f"params.yaml: {key}.columns: the source has both a prompt and messages; add the one that you do not want "
            f"to {key}.drop, or map it to another name, e.g. 'old_prompt: prompt'"
        )


def prompt_template(settings: Rows, names: Iterable[str], key: str) -> Template | None:
    """`prompt_template` as a function of a row with the columns `names`; None where there is none."""
    text, where = settings.prompt_template, f"{key}.prompt_template"
    if text is None:
        return None
    # A template may also call a column as the source does.
    renamed = {theirs: ours for ours, theirs in settings.columns.items() if theirs.isidentifier()}
    there = list(dict.fromkeys([*names, *renamed]))
    try:
        fields = {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise wrong_param(where, text, f"{error}; write {{{{ and }}}} for braces that stay") from None
    if not fields:
        raise wrong_param(where, text, "names no column, so every prompt would be the same; write {question}, say")
    if missing := sorted(fields.difference(there)):
        columns = f"there are {', '.join(there)} ({{{{ and }}}} are braces that stay)"
        raise wrong_param(where, text, f"there is no column '{missing[0]}'; {columns}")

    def fill(row: Row) -> tuple[str, str]:
        known = {name: row.values[name if name in row.values else renamed[name]] for name in fields}
        for name, value in known.items():
            if value is None or value == "":
                raise UserError(f"{row.where}: '{name}' is empty, and {where} needs it; mend or remove the row")
        try:
            return text.format(**known), "\n".join(str(known[name]) for name in sorted(fields))
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise UserError(f"{row.where}: {where} cannot be filled: {type(error).__name__}: {error}") from None

    return fill


def prompt_of(row: Row, template: Template | None, settings: Prepare) -> tuple[dict[str, Any], str]:
    """The row's `prompt` or `messages`, checked; and its own words: of the user's messages, without any template."""
    if template:
        prompt, words = template(row)
        made = _checked(prompt, row)
    else:
        made = _checked(row.values["messages"] if "messages" in row.values else row.values["prompt"], row)
        words = made if isinstance(made, str) else "\n".join(each["content"] for each in made if each["role"] == "user")
    if isinstance(made, str) and settings.chat:
        made = [{"role": "user", "content": made}]
    if settings.system_prompt is not None:
        if isinstance(made, str):
            problem = "only a chat has one; set prepare.chat to true"
            raise wrong_param("prepare.system_prompt", settings.system_prompt, problem)
        if made[0]["role"] == "system":
            raise UserError(f"{row.where}: has a system message of its own; remove prepare.system_prompt")
        made = [{"role": "system", "content": settings.system_prompt}, *made]
    return {"prompt": made} if isinstance(made, str) else {"messages": made}, words


def _checked(prompt: Any, row: Row) -> Any:
    """A text, or a list of messages with a role and a content each; anything else is refused with its place."""
    if isinstance(prompt, list):
        prompt = [_message(message, row) for message in prompt]
    elif not isinstance(prompt, str) and prompt is not None:
        kind = type(prompt).__name__
        raise UserError(f"{row.where}: the prompt is a {kind}; it must be a text or a list of messages")
    if problem := prompt_problem(prompt):
        raise UserError(f"{row.where}: {problem}; mend or remove the row, or leave it out by filters.length")
    return prompt


def _message(message: Any, row: Row) -> dict[str, Any]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UserError(f"{row.where}: a message is {message!r:.60}; it must have a role and a content")
    extra = [name for name, value in message.items() if name not in ("role", "content") and value not in (None, [], {})]
    if extra:
        raise UserError(f"{row.where}: a message has '{extra[0]}'; only role and content (a text) are supported")
    return {"role": message["role"], "content": message["content"]}
