"""Rewards of the embedded task: the right final answer, and the form of a worked answer."""

import re
from collections.abc import Sequence
from typing import Any

from gift.rewards.text import Completions, Value, completion_text, each_row, shown

_ANSWER = re.compile(r"#(-?\d+)\Z")
_WORKED = re.compile(r"(-?\d+[+-]\d=-?\d+ )+#-?\d+")


def arithmetic_answer(
    prompts: Any, completions: Completions, completion_ids: Any, answer: Sequence[str], **columns: Any
) -> list[Value]:
    """1 where the integer after the final "#" is the `answer`, else 0 ("#017" is not "17"; it writes no zeros)."""
    golds = {"answer": answer}
    return each_row(completions, golds, "answer", lambda text, gold: float(final_answer(text) == str(int(shown(gold)))))


def arithmetic_format(prompts: Any, completions: Completions, completion_ids: Any, **columns: Any) -> list[float]:
    """1 where the completion is steps and a final "#<integer>" and nothing else, right or wrong, else 0."""
    return [float(_WORKED.fullmatch(completion_text(completion)) is not None) for completion in completions]


def final_answer(text: str) -> str | None:
    """The integer after the "#" that ends a completion, or None where there is none: "... #17" gives "17"."""
    match = _ANSWER.search(text)
    return match.group(1) if match else None
