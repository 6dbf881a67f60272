"""Rewards of a completion's form, whatever it says: its length in tokens, its tags, its repetitions, its whole text."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gift.project.sections import Count
from gift.rewards.signature import checked
from gift.rewards.text import Completions, compiled, completion_text

Ids = Sequence[Sequence[int]]  # the tokens of each completion, its end token included
Units = Literal["tokens", "words", "characters"]
Length = Annotated[int, Field(ge=1, le=40)]


def length(
    prompts: Any,
    completions: Any,
    completion_ids: Ids,
    *,
    max_tokens: int,
    min_tokens: int = 0,
    target_tokens: int | None = None,
    **columns: Any,
) -> list[float]:
    """1 from `min_tokens` to `max_tokens`, else 0; with `target_tokens` 1 there, falling linearly to 0 at the two.

    `target_tokens: 0` prefers short completions, `target_tokens` = `max_tokens` long ones.
    """
    target = min_tokens if target_tokens is None else target_tokens
    if not 0 <= min_tokens <= target <= max_tokens:
        raise ValueError(
            f"settings: min_tokens {min_tokens}, target_tokens {target_tokens}, max_tokens {max_tokens}: must be 0 or "
            "more, and in this order"
        )

    def value(num: int) -> float:
        if not min_tokens <= num <= max_tokens:
            return 0.0
        if target_tokens is None or num == target_tokens:
            return 1.0
        edge = min_tokens if num < target_tokens else max_tokens
        return (num - edge) / (target_tokens - edge)

    return [value(len(ids)) for ids in completion_ids]


def overlong(
    prompts: Any, completions: Any, completion_ids: Ids, *, max_tokens: int, cache_tokens: int, **columns: Any
) -> list[float]:
    """DAPO's soft over-length punishment (arXiv 2503.14476, equation 13), with L_max and L_cache in tokens.

    0 up to L_max - L_cache, then falling linearly to -1 at L_max, and -1 beyond.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"settings: cache_tokens {cache_tokens}, max_tokens {max_tokens}: cache_tokens is above 0 and at most "
            "max_tokens: it is the last part of them"
        )
    free = max_tokens - cache_tokens
    return [max(-1.0, min(0.0, (free - len(ids)) / cache_tokens)) for ids in completion_ids]


@checked
def cosine_length(
    prompts: Any,
    completions: Any,
    completion_ids: Ids,
    *,
    max_tokens: Count,
    start: float = 1.0,
    end: float = 0.0,
    beyond: float | None = None,
    **columns: Any,
) -> list[float]:
    """From `start` at length 0 along half a cosine to `end` at `max_tokens` (CosFn of arXiv 2502.03373).

    `beyond` is the value from `max_tokens` on; without it `end`. The paper's reward has one curve for right answers
    and one for wrong ones, which two of these make; docs/rewards.md shows how.
    """

    def value(num: int) -> float:
        if num >= max_tokens:
            return end if beyond is None else beyond
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * num / max_tokens))

    return [float(value(len(ids))) for ids in completion_ids]


@checked
def repetition(
    prompts: Any,
    completions: Completions,
    completion_ids: Ids,
    *,
    n: Length = 4,
    max_penalty: Annotated[float, Field(ge=0)] = 1.0,
    of: Units = "tokens",
    **columns: Any,
) -> list[float]:
    """-`max_penalty` x the share of n-grams that stood there before; 0 where there are fewer than `n` units.

    After the n-gram penalty of arXiv 2502.03373, in open-r1's form; its units are `of: words`.
    """
    shares = _distinct(completions, completion_ids, n, of)
    return [0.0 if share is None else max_penalty * (share - 1) for share in shares]


@checked
def ngram_diversity(
    prompts: Any, completions: Completions, completion_ids: Ids, *, n: Length = 4, of: Units = "tokens", **columns: Any
) -> list[float | None]:
    """Distinct-n (arXiv 1510.03055): different n-grams / all n-grams; abstains where there are fewer than `n` units.

    Tokens and characters need no words, so Chinese, Thai and code count like English.
    """
    return _distinct(completions, completion_ids, n, of)


def _distinct(completions: Completions, completion_ids: Ids, n: int, of: Units) -> list[float | None]:
    """Of each completion different n-grams / all n-grams, in (0, 1]; None where it has none. Words are lower case."""
    rows: list[Sequence[Any]] = list(completion_ids)
    if of != "tokens":
        texts = map(completion_text, completions)
        rows = [text.lower().split() for text in texts] if of == "words" else list(texts)
    shares: list[float | None] = []
    for units in rows:
        total = len(units) - n + 1
        ngrams = zip(*(units[start : start + total] for start in range(n)), strict=True) if total > 0 else ()
        shares.append(len(set(ngrams)) / total if total > 0 else None)
    return shares


@checked
def tag_format(
    prompts: Sequence[Any],
    completions: Completions,
    completion_ids: Any,
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
        met = _conditions(_opened(prompt, template, tags[0]) + completion_text(completion), tags, text_after)
        values.append(sum(met) / len(met) if soft else float(all(met)))
    return values


def _opened(prompt: Any, template: str, tag: str) -> str:
    """The beginning of the form that stands before the completion: "<think>\\n", or "" where there is none.

    Of a chat template's generation prompt it is all from the tag on, such as "<think>\\n\\n</think>\\n\\n" of a model
    that is not to think. A text prompt must end in the opening tag: instructions may mention the others.
    """
    if isinstance(prompt, str) and not template:
        match = re.search(rf"<{tag}>\s*\Z", prompt)
        return match[0] if match else ""
    _, found, rest = template.partition(f"<{tag}>")
    return found + rest


def _conditions(text: str, tags: Sequence[str], text_after: bool) -> list[bool]:
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


def text_format(
    prompts: Any, completions: Completions, completion_ids: Any, *, pattern: str, **columns: Any
) -> list[float]:
    """1 where the whole completion matches the regular expression `pattern` ('.' matches line ends too), else 0."""
    form = compiled(pattern, re.DOTALL)
    return [float(form.fullmatch(completion_text(completion)) is not None) for completion in completions]
