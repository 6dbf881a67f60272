"""Rewards that compare the completion, or a part of it, with gold texts: to the letter, normalised, or by a pattern."""

import re
from collections.abc import Sequence
from typing import Any, Literal
from unicodedata import category, normalize

from gift.rewards.answers.characters import INVISIBLE
from gift.rewards.text import Completion, Marker, Value, answer_part, compiled, each_row, gold_answers, gold_texts

# Inside a number punctuation has a meaning: "1.5" is not "15", "-5" is not "5", "5%" is not "5".
_IN_NUMBER = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<![\w)])-(?=[.\d])|(?<![\w.])\.(?=\d)|(?<=\d)%")


def exact_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    *,
    column: str = "answer",
    after: Marker | None = None,
    before: Marker | None = None,
    **columns: Any,
) -> list[Value]:
    """1 where the answer part is the gold text (or one of several) but for white space at its ends, else 0."""

    def same(text: str, gold: Any) -> Value:
        golds = gold_texts(gold)
        return float((answer_part(text, after, before) or "").strip() in golds)

    return each_row(completions, gold_answers(columns, column), same)


def normalized_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    *,
    column: str = "answer",
    after: Marker | None = None,
    before: Marker | None = None,
    keep_case: bool = False,
    keep_punctuation: bool = False,
    drop_words: Sequence[str] = (),
    contains: bool = False,
    **columns: Any,
) -> list[Value]:
    """1 where the answer part is the gold text (or one of several) after `normalized`, else 0.

    With `contains` it is enough that the gold stands in it (`stands_in`). `drop_words: [a, an, the]` gives the
    exact match of SQuAD (arXiv 1606.05250), but that punctuation inside numbers stays.
    """
    dropped = frozenset(word.casefold() for word in drop_words)

    def plain(text: str) -> str:
        return normalized(text, keep_case, keep_punctuation, dropped)

    def same(text: str, gold: Any) -> Value:
        golds = gold_texts(gold)
        wanted = [plain(each) for each in golds]
        if not all(wanted):
            raise ValueError(f"nothing is left of the gold answer {golds[wanted.index('')][:60]!r} after normalisation")
        said = plain(answer_part(text, after, before) or "")
        return float(any(stands_in(each, said) if contains else each == said for each in wanted))

    return each_row(completions, gold_answers(columns, column), same)


def normalized(text: str, keep_case: bool, keep_punctuation: bool, dropped: frozenset[str]) -> str:
    """Unicode NFKC, caseless; no invisible marks, punctuation outside numbers or `dropped` words; single spaces."""
    text = normalize("NFKC", text).translate(INVISIBLE).replace("\u2212", "-")  # the typographic minus
    if not keep_case:
        text = normalize("NFKC", text.casefold())
    if not keep_punctuation:
        kept = {match.start() for match in _IN_NUMBER.finditer(text)}
        text = "".join(each for place, each in enumerate(text) if place in kept or category(each)[0] != "P")
    return " ".join(word for word in text.split() if word.casefold() not in dropped)


def stands_in(gold: str, said: str) -> bool:
    """Whether a text holds the gold, and not as a piece of a word or number: "no" is not in "know", 5 not in 1.5.

    Scripts without upper and lower case may stand side by side: Chinese and Thai put no spaces between words.
    """
    start = said.find(gold)
    while start >= 0:
        end = start + len(gold)
        edges = [(said[start - 1 : start], gold[0]), (said[end : end + 1], gold[-1])]
        if not any(_goes_on(outside, inside) for outside, inside in edges):
            return True
        start = said.find(gold, start + 1)
    return False


def _goes_on(outside: str, inside: str) -> bool:
    """Whether the character outside an edge (or "") belongs to the word or number whose character is inside."""
    cased = outside.lower() != outside.upper()
    return cased or outside.isdigit() or (inside.isdigit() and outside != "" and outside in ".,:/-%")


def regex_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    *,
    pattern: str,
    mode: Literal["search", "fullmatch"] = "search",
    group: int | str = 0,
    column: str | None = None,
    **columns: Any,
) -> list[Value]:
    """1 where `pattern` (Python's syntax; flags as "(?s)" at its start) is found in the completion, else 0.

    `mode`: search (anywhere) or fullmatch (the whole completion). With a `column` the text of `group` in the last
    match must be the gold text there, or one of several, but for white space at its ends.
    """
    form = compiled(pattern)
    if group not in (*range(form.groups + 1), *form.groupindex):
        raise ValueError(f"settings.group: {group!r}: the pattern has {form.groups} groups {list(form.groupindex)}")

    def found(text: str, gold: Any) -> Value:
        if column is None:
            return float((form.search if mode == "search" else form.fullmatch)(text) is not None)
        golds = gold_texts(gold)
        matches = [*form.finditer(text)] if mode == "search" else [form.fullmatch(text)]
        last = matches[-1] if matches else None
        return float(last is not None and (last[group] or "").strip() in golds)

    return each_row(completions, [None] * len(completions) if column is None else gold_answers(columns, column), found)
