"""Rewards of the text alone, and the text of a completion in either of TRL's two forms."""

import re
from collections.abc import Sequence
from typing import Any

Completion = str | list[dict[str, str]]
"""A text or, where the prompt is a chat, the list of messages that the policy added (always one)."""


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of its message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def text_format(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    pattern: str,
    **columns: Any,
) -> list[float]:
    """1 where the whole completion matches the regular expression `pattern` ('.' matches line ends too), else 0."""
    form = re.compile(pattern, re.DOTALL)
    return [float(form.fullmatch(completion_text(completion)) is not None) for completion in completions]
