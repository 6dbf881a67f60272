"""Reward for GSM8K and its like: the number after "####" against the gold answer, compared as numbers."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from gift.rewards.answers.characters import plain_digits
from gift.rewards.text import Completion, Value, each_row, gold_answers, shown

MARKER = "####"
# "-1,234.50": a sign (no minus between two terms), a currency sign on either side of it, digits in whole groups of
# three or ungrouped. (?>...) never gives digits back, so that "1,23" and "12kg5" are no numbers, not
# their beginnings.
_NUMBER = re.compile(
    r"(?:(?<![\w)])(?P<sign>-))?(?:\\?[$€£]\s?(?P<inner>-)?)?(?<![\w.,])"
    r"(?P<digits>(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+)?))(?<=[0-9])(?![.,]?\w*[0-9])",
    re.ASCII,
)


def gsm8k_answer(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    *,
    column: str = "answer",
    last_number: bool = False,
    **columns: Any,
) -> list[Value]:
    """1 where the completion's answer is the number of the gold column ("... #### 72", or 72 alone), else 0.

    The completion's answer is the one number on the line of its last "####"; two numbers there are no answer. With
    `last_number` a completion without such an answer gives the last number in its text.
    """

    def right(text: str, gold: Any) -> Value:
        number = _gold(plain_digits(shown(gold)))
        return float(_said(plain_digits(text), last_number) == number)

    return each_row(completions, gold_answers(columns, column), right)


def _said(text: str, last_number: bool) -> Decimal | None:
    marked = _marked(text)
    if marked is None and last_number:
        return next(reversed(_numbers(text)), None)
    return marked


def _gold(text: str) -> Decimal:
    """The number of a gold answer; without one there is nothing to compare with, which is an error and not a 0."""
    found = [_marked(text)] if MARKER in text else _numbers(text)
    if len(found) != 1 or found[0] is None:
        raise ValueError(f"the gold answer {text[-60:]!r} does not hold one number")
    return found[0]


def _marked(text: str) -> Decimal | None:
    """The one number on the line after the last "####", or None."""
    _, marker, rest = text.rpartition(MARKER)
    found = _numbers(rest.strip().split("\n")[0]) if marker else []
    return found[0] if len(found) == 1 else None


def _numbers(text: str) -> list[Decimal]:
    """All numbers of a text: thousands separators, currency signs, a final period and units are left out."""
    found = []
    for match in _NUMBER.finditer(text.replace("\u2212", "-")):
        value = Decimal(match["digits"].replace(",", ""))
        # copy_negate, for a minus would round to 28 digits
        found.append(value.copy_negate() if match["sign"] or match["inner"] else value)
    return found
