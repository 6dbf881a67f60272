"""Rewards against repetition: how many of a completion's n-grams differ, over tokens, words or characters."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gift.rewards.signature import checked
from gift.rewards.text import Completion, completion_text

Units = Literal["tokens", "words", "characters"]
Length = Annotated[int, Field(ge=1, le=40)]


@checked
def repetition(
    prompts: Any,
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    *,
    n: Length = 4,
    max_penalty: Annotated[float, Field(ge=0)] = 1.0,
    of: Units = "tokens",
    **columns: Any,
) -> list[float]:
    """-`max_penalty` x the share of n-grams that stood there before; 0 where there are fewer than `n` units.

    After the n-gram penalty of arXiv 2502.03373, in open-r1's form; its units are `of: words`.
    """
    shares = [distinct(units, n) for units in _units(completions, completion_ids, of)]
    return [0.0 if share is None else max_penalty * (share - 1) for share in shares]


@checked
def ngram_diversity(
    prompts: Any,
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    *,
    n: Length = 4,
    of: Units = "tokens",
    **columns: Any,
) -> list[float | None]:
    """Distinct-n (arXiv 1510.03055): different n-grams / all n-grams; abstains where there are fewer than `n` units.

    Tokens and characters need no words, so Chinese, Thai and code count like English.
    """
    return [distinct(units, n) for units in _units(completions, completion_ids, of)]


def distinct(units: Sequence[Any], n: int) -> float | None:
    """Different n-grams / all n-grams of a sequence, in (0, 1]; None where it has none."""
    total = len(units) - n + 1
    if total < 1:
        return None
    return len(set(zip(*(units[start : start + total] for start in range(n)), strict=True))) / total


def _units(
    completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]], of: Units
) -> list[Sequence[Any]]:
    """What the n-grams are made of, for each completion; words are lower case and stand between white space."""
    if of == "tokens":
        return list(completion_ids)
    texts = [completion_text(completion) for completion in completions]
    return [text.lower().split() for text in texts] if of == "words" else list(texts)
