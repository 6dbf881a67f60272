"""The embedded task's verdict with a share of wrong ones: how a method bears a reward that is not to be trusted."""

import hashlib
from typing import Any

from gift.rewards.arithmetic import arithmetic_answer


def flipped_answer(
    prompts: Any, completions: Any, completion_ids: Any, share: float = 0.25, **columns: Any
) -> list[float | None]:
    """1 for a right answer and 0 for a wrong one; the opposite for a `share` of completions, by their text."""
    rights = arithmetic_answer(prompts, completions, completion_ids, **columns)
    wrong = [_chance(str(prompt) + str(text)) < share for prompt, text in zip(prompts, completions, strict=True)]
    return [None if right is None else float(right != flip) for right, flip in zip(rights, wrong, strict=True)]


def _chance(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
