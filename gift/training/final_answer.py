"""Where a completion has its final answer, as a value to compare and as a place in its text."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from gift.project.sections import Section
from gift.rewards.answers import last_number_of, last_number_place
from gift.rewards.math_answer import boxed_answer
from gift.rewards.text import boxes

Place = tuple[int, int]  # of characters: the first, and that behind the last


class Plain(Section):
    """No choices."""


class Pattern(Section):
    """A regular expression in Python's syntax: the text of its one group, or all that it finds, where it is last."""

    regex: str

    @field_validator("regex")
    @classmethod
    def is_a_pattern(cls, regex: str) -> str:
        try:
            groups = re.compile(regex).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if groups > 1:
            raise ValueError(f"has {groups} groups; one alone is the answer: write the others as (?:...)")
        return regex


def last_match(text: str, settings: Pattern) -> str | None:
    """What the last match says, without white space at its ends."""
    place = last_match_place(text, settings)
    return text[slice(*place)] if place else None


def last_match_place(text: str, settings: Pattern) -> Place | None:
    form = re.compile(settings.regex)
    found = [match.span(form.groups) for match in form.finditer(text)]
    return _stripped(text, *found[-1]) if found else None


def last_box_place(text: str) -> Place | None:
    """The content of the last box alone, also where several make one answer."""
    found = boxes(text)
    if not found:
        return None
    begin, end, content = found[-1]
    start = text.rindex(content, begin, end)
    return _stripped(text, start, start + len(content))


def _stripped(text: str, begin: int, end: int) -> Place | None:
    """A place without white space at its ends; None where nothing is left."""
    words = text[max(begin, 0) : max(end, 0)].strip()  # -1: a group that took no part in the match
    start = text.index(words, max(begin, 0))
    return (start, start + len(words)) if words else None


@dataclass(frozen=True)
class Answer:
    """What the final answer of a text is, and its place there; None: it has none, or (of a place) an empty one."""

    settings: type[Section]
    find: Callable[[str, Any], Hashable | None]
    place: Callable[[str, Any], Place | None]


ANSWER = {
    "boxed": Answer(Plain, lambda text, _: boxed_answer(text), lambda text, _: last_box_place(text)),
    "last_number": Answer(Plain, lambda text, _: last_number_of(text), lambda text, _: last_number_place(text)),
    "pattern": Answer(Pattern, last_match, last_match_place),
}
