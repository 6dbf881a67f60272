"""Reward for mathematics: the completion's final answer against the gold answer, as equal expressions (Math-Verify)."""

import logging
import re
import warnings
from itertools import accumulate
from typing import Any

from gift.rewards.characters import plain_digits
from gift.rewards.text import Completions, Marker, Value, answer_part, boxes, each_row, gold_texts

MAX_ANSWER = 1000  # characters that an answer may have: more is no answer
MAX_DEPTH = 20  # brackets that may be open at once: the parser's time grows steeply with them
TAIL = 2000  # characters at the end of a completion that are searched where it has no box

_JOINT = re.compile(r"(?:[\s,;.$]|\\[,;!()\[\]]|\\q?quad\b|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\}){0,40}")
_MARKED = re.compile(r"^\s*####\s*(\S.*)")
_COMMAND = re.compile(r"\\[A-Za-z]+\s*(?:\{[^{}]*\})?")
_PROSE = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_FORMULA = re.compile(r"(?<!\\)\$.+?(?<!\\)\$|\\\(|\\\[", re.DOTALL)
_PERCENT = re.compile(r"(.+?)\s*(?:\\?%|percent|\\text\s*\{\s*percent\s*\})", re.DOTALL)
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\{(\d+)\}")
_NUMBERS = re.compile(r"-?[\d.]+(?:\s+[\d.]+)+")
_SPACED_NUMBER = re.compile(r"-?\d{1,3}(?:\s\d{3})+(?:\.\d+)?")
# What people write and Math-Verify reads as something else, or not at all.
_SPELLINGS = (
    (re.compile(r"^\s*(?:=|\\approx(?![A-Za-z]))\s*|[\s.,;:]+$"), ""),  # "= 72", "72."
    (re.compile(r"(?<=\d)(?:\\[,;: !]|\{,\}|~)(?=\d{3}(?!\d))"), ""),  # 1\,234\,567
    (re.compile(r"^(-?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),  # 2 1/2
    (re.compile(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)$"), r"\1 \\times 10^{\2}"),  # 3e8
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
)


def math_answer(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    *,
    column: str = "answer",
    require_boxed: bool = False,
    after: Marker | None = None,
    before: Marker | None = None,
    **columns: Any,
) -> list[Value]:
    r"""1 where the completion's answer equals the gold answer as mathematics, else 0 (docs/rewards.md).

    The answer is the last \boxed{...}; without a box, and unless `require_boxed`, "#### 72" on the last line; else what
    Math-Verify finds in the last `TAIL` characters. The gold is LaTeX or a number, or a solution that ends in one of
    these ways, or a list of which any is right; one that cannot be read is the error of its row.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the limits are off
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SymPy's, about what a policy wrote
        import math_verify  # noqa: F401  # 2 s, in a call without rows too

        def right(text: str, gold: Any) -> Value:
            return _verdict(plain_digits(answer_part(text, after, before) or ""), gold, require_boxed)

        return each_row(completions, columns, column, right)


def _verdict(text: str, gold: Any, require_boxed: bool) -> Value:
    from math_verify import verify

    golds = [(each, gold_expressions(plain_digits(each))) for each in gold_texts(gold)]
    for each, right in golds:
        if not right:
            raise ValueError(f"the gold answer {each[-60:]!r} cannot be read as mathematics")
    said = said_expressions(text, require_boxed)
    for _, right in golds:
        try:
            equal = verify(right, said, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
            if equal and _same_size(right[0], said[0]):
                return 1.0
        except MemoryError as error:  # the worker's limit, and no verdict
            return error
        except Exception:  # Math-Verify's own rule: what SymPy cannot compare has not been shown to be equal
            continue
    return 0.0


def _same_size(gold: Any, said: Any) -> bool:
    """Whether two numbers agree to one part in a thousand: to Math-Verify small numbers of any size are equal.

    What is no number passes, and so does a percentage: 50% and 50 are one answer to it.
    """
    from sympy import Expr, UnevaluatedExpr

    if not all(isinstance(each, Expr) and each.is_number and not each.has(UnevaluatedExpr) for each in (gold, said)):
        return True
    if gold == said:  # infinity, whose difference from itself is no number
        return True
    one, other = gold.evalf(), said.evalf()
    return bool(abs(one - other) <= max(abs(one), abs(other)) / 1000)


def gold_expressions(gold: str) -> list[Any]:
    """What Math-Verify reads in a gold answer: a SymPy expression and its LaTeX, or nothing (12:00 is 12 / 0)."""
    from sympy import nan, zoo

    answer = final_answer(gold)
    if answer is None and not _FORMULA.search(gold) and not _is_prose(gold):
        answer = gold
    found = _parse_text(gold) if answer is None else _parse_latex(answer)
    return [] if all(isinstance(each, str) or each in (nan, zoo) for each in found) else found


def said_expressions(text: str, require_boxed: bool) -> list[Any]:
    """What Math-Verify reads in a completion, in the same form."""
    answer = boxed_answer(text) if require_boxed else final_answer(text)
    if answer is not None:
        return _parse_latex(answer)
    return [] if require_boxed else _parse_text(text)


def final_answer(text: str) -> str | None:
    """The boxed answer or, where there is none, what stands behind "####" on the last line, as in GSM8K."""
    if (boxed := boxed_answer(text)) is not None:
        return boxed
    marked = _MARKED.search(text.rstrip().rpartition("\n")[2])
    return marked[1] if marked and not _is_prose(marked[1]) else None


def boxed_answer(text: str) -> str | None:
    """The content of the last box; those of several, where only "and", "or" and punctuation stand between them."""
    found = boxes(text)
    if not found:
        return None
    begin, _, content = found.pop()
    contents = [content]
    while found and _JOINT.fullmatch(text, found[-1][1], begin):
        begin, _, content = found.pop()
        if content != contents[0]:
            contents.insert(0, content)
    return ", ".join(contents)


def _is_prose(text: str) -> bool:
    r"""Whether two words stand side by side, outside of \text{...}: then it is a sentence, and no formula."""
    return _PROSE.search(_COMMAND.sub("", text)) is not None


def _parse_latex(answer: str) -> list[Any]:
    """The whole of an answer as LaTeX; Math-Verify does not search it for a part that can be read."""
    from math_verify import LatexExtractionConfig, parse

    steps = (("([{".find(letter) >= 0) - (")]}".find(letter) >= 0) for letter in answer)
    if len(answer) > MAX_ANSWER or max(accumulate(steps), default=0) > MAX_DEPTH:
        return []
    for pattern, spelling in _SPELLINGS:
        answer = pattern.sub(spelling, answer)
    answer = _REPEATING.sub(_fraction, answer)
    if _NUMBERS.fullmatch(answer):  # "1 234" is one number; others are no answer (Math-Verify adds them up)
        answer = "".join(answer.split()) if _SPACED_NUMBER.fullmatch(answer) else ""
    percent = _PERCENT.fullmatch(answer)  # which it reads behind a formula, and not inside
    if percent:
        return parse(f"\\[{percent[1]}\\]%", [LatexExtractionConfig(boxed_match_priority=-1)], parsing_timeout=None)
    config = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    return parse("\\boxed{" + answer + "}", [config], parsing_timeout=None) if answer else []


def _fraction(repeating: re.Match[str]) -> str:
    r"""A repeating decimal as a fraction: 0.1\overline{6} is 16 - 1 over 90."""
    whole, fixed, period = repeating.groups()
    above = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{above}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _parse_text(text: str) -> list[Any]:
    """The answer that Math-Verify finds in the last characters of a text: a formula, else a number."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    if len(text) > TAIL:  # from the beginning of a line on, so that no formula is cut in two
        text = text[-TAIL:].partition("\n")[2] or text[-TAIL:]
    return parse(text, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
