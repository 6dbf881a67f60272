"""Rewards of the embedded task: the right final answer or a near one, right steps, and the form of a worked answer."""

import re
from collections.abc import Sequence
from typing import Any

from gift.project.sections import Count
from gift.rewards.signature import checked
from gift.rewards.text import Completions, Value, completion_text, each_row, shown

_ANSWER = re.compile(r"#(-?\d+)\Z")
_WORKED = re.compile(r"(-?\d+[+-]\d=-?\d+ )+#-?\d+")
# Numbers of the graded rewards have nine digits at most: Python refuses to read those of thousands.
_NUMBER = re.compile(r"-?[0-9]{1,9}")
_TERM = re.compile(r"[+-]?[0-9]{1,9}")
_STEP = re.compile(rf"({_NUMBER.pattern})([+-][0-9]{{1,9}})=({_NUMBER.pattern})")


def arithmetic_answer(
    prompts: Any, completions: Completions, completion_ids: Any, answer: Sequence[str], **columns: Any
) -> list[Value]:
    """1 where the integer after the final "#" is the `answer`, else 0 ("#017" is not "17"; it writes no zeros)."""
    golds = {"answer": answer}
    return each_row(completions, golds, "answer", lambda text, gold: float(final_answer(text) == str(int(shown(gold)))))


@checked
def arithmetic_near(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    answer: Sequence[str],
    *,
    within: Count = 10,
    **columns: Any,
) -> list[Value]:
    """1 where the integer after the final "#" is the `answer`, linear to 0 where it is `within` off; 0 without one."""

    def nearness(text: str, gold: Any) -> float:
        right, found = int(shown(gold)), final_answer(text)
        if found is None or not _NUMBER.fullmatch(found):
            return 0.0
        return max(0.0, 1 - abs(int(found) - right) / within)

    return each_row(completions, {"answer": answer}, "answer", nearness)


def arithmetic_steps(
    prompts: Completions, completions: Completions, completion_ids: Any, **columns: Any
) -> list[float]:
    """The share of right steps: of as many as the prompt asks for, or of those written where they are more.

    The k-th step is right where it goes on from the number before, takes the prompt's next term and adds up: of
    "7+5=12 12-3=8 8+8=16 #16" two of three are right, for the last one goes on well from the wrong 8.
    """
    texts = [
        (completion_text(prompt), completion_text(text)) for prompt, text in zip(prompts, completions, strict=True)
    ]
    return [_right_steps(*pair) for pair in texts]


def arithmetic_format(prompts: Any, completions: Completions, completion_ids: Any, **columns: Any) -> list[float]:
    """1 where the completion is steps and a final "#<integer>" and nothing else, right or wrong, else 0."""
    return [float(_WORKED.fullmatch(completion_text(completion)) is not None) for completion in completions]


def final_answer(text: str) -> str | None:
    """The integer after the "#" that ends a completion, or None where there is none: "... #17" gives "17"."""
    match = _ANSWER.search(text)
    return match.group(1) if match else None


def _right_steps(prompt: str, text: str) -> float:
    terms = [int(term) for term in _TERM.findall(prompt)]
    written = text.split(" ")[:-1]  # the answer stands behind the last space
    asked = max(len(terms) - 1, len(written))
    if not terms or not asked:
        return 0.0
    total, right = terms[0], 0
    for step, term in zip(written, terms[1:], strict=False):
        match = _STEP.fullmatch(step)
        if match is None:
            break  # what comes behind goes on from nothing
        before, added, after = (int(number) for number in match.groups())
        right += before == total and added == term and after == before + added
        total = after
    return right / asked
