"""The prompt of one source row: the text or the chat that the policy will read, and the row's own words in it."""

import re
import string
from collections.abc import Callable, Iterable
from typing import Any

from gift.project.errors import UserError, wrong_param
from gift.prompts.files import Row
from gift.prompts.settings import Prepare, Rows
from gift.tables.prompts import prompt_problem

Template = Callable[[Row], tuple[str, str]]
"""From a row under our names to the whole text, and the filled-in values alone."""


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
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"{row.where}: {where} cannot be filled: {problem}") from None

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


def check_prompt_columns(names: list[str], has_template: bool, key: str) -> None:
    """One of the columns, under our names, is the prompt, and only one."""
    prompts = {"prompt", "messages"} & set(names)
    if not has_template and not prompts:
        raise UserError(
            f"params.yaml: {key}.columns: nothing is the prompt; add 'prompt: <column>' (the source has "
            f"{', '.join(names)}), or set {key}.prompt_template"
        )
    if not has_template and len(prompts) == 2:
        raise UserError(
            f"params.yaml: {key}.columns: the source has both a prompt and messages; add the one that you do not want "
            f"to {key}.drop, or map it to another name, e.g. 'old_prompt: prompt'"
        )
    if has_template and "messages" in names:
        problem = "the source has messages already; remove the template, or map messages to another name"
        raise wrong_param(f"{key}.prompt_template", "", problem)
