"""Rewards of the length of a completion, in tokens, its end token included; they read no text."""

import math
from collections.abc import Sequence
from typing import Any

from gift.project.sections import Count
from gift.rewards.signature import checked


def length(
    prompts: Any,
    completions: Any,
    completion_ids: Sequence[Sequence[int]],
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
    prompts: Any,
    completions: Any,
    completion_ids: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    cache_tokens: int,
    **columns: Any,
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
    completion_ids: Sequence[Sequence[int]],
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
