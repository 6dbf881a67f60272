"""Reward for the form <think>...</think><answer>...</answer>, also where the chat template opened the first tag."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from gift.rewards.signature import checked
from gift.rewards.text import Completion, completion_text


@checked
def tag_format(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    generation_prompt: Sequence[str] | None = None,
    *,
    tags: Annotated[Sequence[Annotated[str, Field(pattern=r"^[\w-]+$")]], Field(min_length=1)] = ("think", "answer"),
    text_after: bool = False,
    soft: bool = False,
    **columns: Any,
) -> list[float]:
    """1 where the completion is its `tags` in order and nothing else, the last of them not empty, else 0.

    Each tag opens once and closes once; only white space stands outside. With `text_after` text must follow the last
    tag, and that may be empty. With `soft` the value is the share of the conditions that hold: two a tag; then, where
    those hold, their order; then nothing outside, and something in the last. What the template (or a text prompt)
    already opened belongs to the completion (docs/rewards.md).
    """
    if len(set(tags)) < len(tags):
        raise ValueError(f"settings.tags: {tags!r}: each tag has one place; take the second one away")
    templates = generation_prompt or [""] * len(completions)
    values = []
    for prompt, completion, template in zip(prompts, completions, templates, strict=True):
        met = conditions(opened(prompt, template, tags[0]) + completion_text(completion), tags, text_after)
        values.append(sum(met) / len(met) if soft else float(all(met)))
    return values


def opened(prompt: Any, template: str, tag: str) -> str:
    """The beginning of the form that stands before the completion: "<think>\\n", or "" where there is none.

    Of a chat template's generation prompt it is all from the tag on, such as "<think>\\n\\n</think>\\n\\n" of a model
    that is not to think. A text prompt must end in the opening tag: instructions may mention the others.
    """
    if isinstance(prompt, str) and not template:
        match = re.search(rf"<{tag}>\s*\Z", prompt)
        return match[0] if match else ""
    _, found, rest = template.partition(f"<{tag}>")
    return found + rest


def conditions(text: str, tags: Sequence[str], text_after: bool) -> list[bool]:
    """Which conditions of the form hold, in the order of `tag_format`; [2 x tags + 3]."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    once = [text.count(mark) == 1 for mark in marks]
    any_mark = "|".join(map(re.escape, marks))
    if re.findall(any_mark, text) != marks:
        return [*once, False, False, False]
    *texts, rest = re.split(any_mark, text)  # outside, inside, outside, inside, ..., and what follows the last tag
    outside = "".join(texts[::2])
    if text_after:
        return [*once, True, not outside.strip(), bool(rest.strip())]
    return [*once, True, not (outside + rest).strip(), bool(texts[-1].strip())]
