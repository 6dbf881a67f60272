"""Reward for the form of the whole text: a regular expression that it matches."""

import re
from collections.abc import Sequence
from typing import Any

from gift.rewards.text import Completion, compiled, completion_text


def text_format(
    prompts: Any, completions: Sequence[Completion], completion_ids: Any, *, pattern: str, **columns: Any
) -> list[float]:
    """1 where the whole completion matches the regular expression `pattern` ('.' matches line ends too), else 0."""
    form = compiled(pattern, re.DOTALL)
    return [float(form.fullmatch(completion_text(completion)) is not None) for completion in completions]
