"""What rewards read: a completion's text, its answer part, its boxes, the gold answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

Completion = str | list[dict[str, str]]
"""A text or, where the prompt is a chat, the list of messages that the policy added (always one)."""
Completions = Sequence[Completion]
Marker = Annotated[str, Field(min_length=1)]
"""A text that stands before or behind an answer."""
Value = float | None | Exception
"""What a reward function says of one row: a number, None where it does not apply, or the failure of this row alone."""

# LaTeX's argument without braces is one digit, letter or command: "\\boxed5". Where the number, word or formula goes on
# ("\\boxed72", "\\boxed x^2", "\\boxed\\frac12") a reader sees more than LaTeX's box holds, and it is none.
_GOES_ON = r"[A-Za-z]|[.,]?\d|\s*[\[{\d^_+*/=!%-]|\s*\\(?!(?:boxed|fbox|text|q?quad)(?![A-Za-z]))[A-Za-z%]"
_TOKEN = rf"(?:\s*(?P<token>\d|\\[A-Za-z]+)|\s+(?P<letter>[A-Za-z]))(?!{_GOES_ON})"
# A backslash and its character after the boxes, so that the braces of a set, "\\{" and "\\}", open and close nothing.
_BRACES = re.compile(rf"\\(?:boxed|fbox)(?:(?P<box>\s*\{{)|{_TOKEN})|\\.|(?P<open>\{{)|(?P<close>\}})", re.DOTALL)

_SIZES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SIZE = rf"({'|'.join(_SIZES)})s?\b"
SIZE_WORD = re.compile(rf"\b{_SIZE}", re.IGNORECASE)
_SIZED = re.compile(
    rf"(?<![\d.,^_])(\d[\d,]*+(?:\.\d+)?+)\s*+(\\(?:text|mathrm|textrm|mbox)\s*\{{)?+\s*+{_SIZE}",
    re.IGNORECASE | re.ASCII,
)
# A number that is all of a formula or box, and the word behind that: "$18$ million", "\boxed{18} million".
_SIZED_OUTSIDE = re.compile(
    rf"((?:\$|\\\(|\\\[|\\boxed\s*+\{{)\s*+(?:\\?\$\s*+)?+)(\d[\d,]*+(?:\.\d+)?+)"
    rf"(\s*+(?:\$|\\\)|\\\]|\}}))\s*+(\\(?:text|mathrm|textrm|mbox)\s*+\{{)?+\s*+{_SIZE}",
    re.IGNORECASE | re.ASCII,
)


def compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """The regular expression of the setting `pattern`; a `ValueError` where it is none."""
    try:
        return re.compile(pattern, flags)
    except (re.error, TypeError) as error:
        raise ValueError(f"settings.pattern: {pattern!r}: is no regular expression: {error}") from None


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of its message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def answer_part(text: str, after: str | None, before: str | None) -> str | None:
    """The text behind the last `after` (or all) up to the next `before` (or the end); None where one is missing."""
    if after is not None:
        _, marker, text = text.rpartition(after)
        if not marker:
            return None
    if before is not None:
        text, marker, _ = text.partition(before)
        if not marker:
            return None
    return text


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Begin, end and content of every closed \boxed{...}, \boxed5 or \fbox that stands in no other; in one pass."""
    found: list[tuple[int, int, str]] = []
    opened: list[re.Match[str] | None] = []
    for match in _BRACES.finditer(text):
        single = match["token"] or match["letter"]
        if single:
            found.append((match.start(), match.end(), single))
        elif match["box"] or match["open"]:
            opened.append(match if match["box"] else None)
        elif match["close"] and opened:
            box = opened.pop()
            if box:
                while found and found[-1][0] > box.start():
                    found.pop()
                found.append((box.start(), match.end(), text[box.end() : match.start()].strip()))
    return found


def each_row(
    completions: Completions,
    columns: Mapping[str, Sequence[Any]],
    column: str | None,
    compare: Callable[[str, Any], Value],
) -> list[Value]:
    """`compare` of the text of each completion with its gold answer; a `ValueError` is the row's own failure.

    `column` holds the gold answers (None: there are none); a `ValueError` says which columns there are.
    """
    if column is not None and column not in columns:
        there = ", ".join(columns) or "none"
        raise ValueError(f"settings.column: the prompts table has no column '{column}'; its columns: {there}")
    golds = [None] * len(completions) if column is None else columns[column]
    values: list[Value] = []
    for completion, gold in zip(completions, golds, strict=True):
        try:
            values.append(compare(completion_text(completion), gold))
        except ValueError as error:
            values.append(error)
    return values


def gold_texts(gold: Any) -> list[str]:
    """The texts that count as right in a cell of the gold column, one or several.

    Raises a `ValueError` where there is none, or a blank one: such a row can be neither right nor wrong.
    """
    texts = list(gold) if isinstance(gold, (list, tuple)) else [gold]
    if not texts or any(isinstance(text, (dict, list)) or not shown(text) for text in texts):
        raise ValueError(f"the gold answer {str(gold)[:60]!r} is no text and no list of texts")
    return [shown(text) for text in texts]


def shown(gold: Any) -> str:
    """A cell as stripped text: 72.0 is "72", a null is the empty text."""
    if gold is None or gold != gold:  # a null may come as NaN
        return ""
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    return str(gold).strip()


def sized(text: str) -> str:
    r"""The text with numbers written out that have a word of size behind them: "18 million", "2\text{ dozen eggs}".

    The word may stand behind the formula or box that the number is: "$18$ million", "\boxed{18} million".
    """

    def written(digits: str, size: str) -> str:
        number = Decimal(digits.replace(",", "")) * _SIZES[size.lower()]
        whole = number.to_integral_value()
        return f"{whole if number == whole else number:f}"

    for _ in range(2):  # "3 hundred thousand"
        text = _SIZED.sub(lambda match: f"{written(match[1], match[3])} {match[2] or ''}", text)
        text = _SIZED_OUTSIDE.sub(
            lambda match: f"{match[1]}{written(match[2], match[5])}{match[3]} {match[4] or ''}", text
        )
    return text
