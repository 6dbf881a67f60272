"""Reward for multiple choice: the one letter that a completion commits to, against the gold letter."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from gift.rewards.signature import checked
from gift.rewards.text import Completion, Marker, Value, answer_part, boxes, each_row, gold_answers, shown

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Letters of scripts without upper and lower case are no pieces of a Latin word: the C of "答案是C" stands alone.
_UNCASED = re.compile("[\u0590-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
_MARKUP = re.compile(r"\\(?:text|textbf|mathbf|mathrm|boxed|bf|rm)\b|[*_`$#{}\\]")


@checked
def multiple_choice(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    *,
    column: str = "answer",
    letters: str = "ABCDE",
    words: Sequence[Marker] = ("answer",),
    after: Marker | None = None,
    before: Marker | None = None,
    **columns: Any,
) -> list[Value]:
    r"""1 where the completion's letter is the gold letter, else 0; two letters are no answer.

    The letter stands, in this order, in the last \boxed{...}; on the last line with one of the `words` ("Answer: C",
    "The answer is (C)."), or on the next one where that line ends with it; or alone, or before its option ("C) 12"), on
    the last line. The gold is a letter ("C", "(C)", "C) 12") or an option's index, 0 for the first letter.
    """
    if not letters or not set(letters) <= set(ALPHABET) or len(set(letters)) < len(letters):
        raise ValueError(f"settings.letters: {letters!r}: must be different letters out of A to Z, such as ABCDE")
    anchor = re.compile("|".join(re.escape(unicodedata.normalize("NFKC", word)) for word in words) or r"(?!)", re.I)

    def right(text: str, gold: Any) -> Value:
        letter = _gold(gold, letters)
        return float(_said(answer_part(text, after, before) or "", letters, anchor) == letter)

    return each_row(completions, gold_answers(columns, column), right)


def _gold(gold: Any, letters: str) -> str:
    """The gold letter; an error where there is none, for then nothing is right."""
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(letters):
        return letters[gold]
    letter = _leading(shown(gold), letters)
    if letter is None:
        raise ValueError(f"the gold answer {str(gold)[:60]!r} is none of the letters {letters}")
    return letter


def _said(text: str, letters: str, anchor: re.Pattern[str]) -> str | None:
    text = unicodedata.normalize("NFKC", text)
    boxed = boxes(text)
    if boxed:
        return _leading(_plain(boxed[-1][2]), letters)
    lines = [line for line in map(_plain, text.splitlines()) if line]
    for number in range(len(lines) - 1, -1, -1):
        found = list(anchor.finditer(lines[number]))
        if found:
            rest = lines[number][found[-1].end() :]
            if not re.search(r"\w", rest):  # "**Answer:**", and the letter on the next line
                rest = lines[number + 1] if number + 1 < len(lines) else ""
            return _only(rest, letters)
    return _leading(lines[-1], letters) if lines else None


def _plain(line: str) -> str:
    """A line without LaTeX's and Markdown's dress."""
    return _MARKUP.sub(" ", line).strip()


def _only(text: str, letters: str) -> str | None:
    """The one letter among `letters` that stands alone in a text, however often; a small one if it is all there is."""
    bare = re.sub(r"\W", "", text).upper()
    if len(bare) == 1:
        return bare if bare in letters else None
    found = set(re.findall(rf"(?<![\w'’])[{letters}](?![\w'’])", _UNCASED.sub(" ", text)))
    return found.pop() if len(found) == 1 else None


def _leading(text: str, letters: str) -> str | None:
    """The letter that is a whole text, or that stands before the one option there: "C", "(C)", "c.", "C) 12"."""
    match = re.match(r"\W*([A-Za-z])(?:\W*$|\s*[).:\]-])", text)
    if not match or match[1].upper() not in letters:
        return None
    options = set(re.findall(rf"(?<!\w)[{letters}](?=\s*[).:\]])", text))  # "A) 3 B) 4" lists them and chooses none
    return match[1].upper() if options <= {match[1]} else None
