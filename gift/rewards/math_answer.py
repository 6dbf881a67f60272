"""Reward for mathematics: the completion's final answer against the gold answer, as equal expressions (Math-Verify)."""

import logging
import re
import warnings
from itertools import accumulate, pairwise
from typing import Any

from gift.rewards.characters import plain_digits
from gift.rewards.text import SIZE_WORD, Completions, Marker, Value, answer_part, boxes, each_row, gold_texts, sized

MAX_ANSWER = 1000  # characters that an answer may have: more is no answer
MAX_DEPTH = 20  # brackets that may be open at once: the parser's time grows steeply with them
TAIL = 2000  # characters at the end of a completion that are searched where it has no box

_JOINT = re.compile(r"(?:[\s,;.$]|\\[,;!()\[\]]|\\q?quad\b|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\}){0,40}")
_MARKED = re.compile(r"^\s*####\s*(\S.*)")
_COMMAND = re.compile(r"\\[A-Za-z]+\s*(?:\{[^{}]*\})?")
_PROSE = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_FORMULA = re.compile(
    r"(?<!\\)(?:\$\$(.+?)(?<!\\)\$\$|\$(.+?)(?<!\\)\$|\\\((.+?)(?<!\\)\\\)|\\\[(.+?)(?<!\\)\\\])", re.DOTALL
)
_JOINED = re.compile(r"(?:[\s,;.]|\b(?:and|or)\b)*")  # what stands beside the formulas of a list
_WORDS = re.compile(r"[^\d$\\+*/=<>^_()\[\]{}|-]*")  # what may stand beside one formula, such as a unit
_NUMERAL = re.compile(r"\d+(?:[.,:/]\d+)*")
_TIME = re.compile(r"\d\s*:\s*\d\d\s*(?:\\\w+\s*\{\s*)?[ap]\.?\s*m\b", re.IGNORECASE)
_BASE = re.compile(r"(?<![\w}])\d+_(?:\{\s*(\d+)\s*\}|(\d))")
_PERCENT = re.compile(r"(.+?)\s*(?:\\?%|percent|\\text\s*\{\s*percent\s*\})", re.DOTALL)
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\{(\d+)\}")
_NUMBERS = re.compile(r"-?[\d.]+(?:\s+[\d.]+)+")
_SPACED_NUMBER = re.compile(r"-?\d{1,3}(?:\s\d{3})+(?:\.\d+)?")
# Letters that Math-Verify drops at the end of an answer, as units; and where a letter may stand that is one.
# ("a ." and the like, with any character for the dot, are among its units.)
_LETTER = re.compile(r"(?<=[\d}\s])(?:[cdghlmost](?:e?s)?|abs?|bcs?)(?=\s*$)|(?<=[\d}\s][a-hs]\s)[A-Za-z](?=\s*$)")
_MAYBE_UNIT = re.compile(r"[cdghlmostb][\s.,;:\\]*(?:\$|\\\)|\\\]|\Z)")
# What holds no variable, though it is written with letters.
_NUMERIC = re.compile(
    r"\\(?:[dtc]?frac|sqrt|pi|cdot|times|div|pm|left|right|(?:text|math)[a-z]*\s*\{[^{}]*\})(?![A-Za-z])"
)
_EDGES = re.compile(r"^\s*(?:=|\\approx(?![A-Za-z]))|[.,;:](?=[\s.,;:\\]*$)")  # "= 72", "72."
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
# What people write and Math-Verify reads as something else, or not at all.
_SPELLINGS = (
    (re.compile(r"(?<=\d)(?:\\[,;: !]|\{,\}|~)(?=\d{3}(?!\d))"), ""),  # 1\,234\,567
    (re.compile(r"(?<!\\)\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~(?!=)"), " "),
    (re.compile(rf"\\(?:mathbf|boldsymbol|bm|pmb)\s*{_GROUP}"), r" \1"),
    (re.compile(r"\\text(?:bf|it|rm)?\s*\{\s*(\(?\s*[-+]?\d[\d.,/]*\s*\)?)\s*\}"), r" \1"),
    (re.compile(r"\\(?:bf|boldmath|(?:display|text)style|large|Large|LARGE|huge|Huge|small)(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:text)?color\s*\{[^{}]*\}"), " "),
    (re.compile(r"\\mathrm\s*\{\s*([ei])\s*\}"), r" \1"),  # for it they are units
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\s+"), " "),
)
# The same, of an answer as a whole.
_WHOLE = (
    (_EDGES, ""),
    (re.compile(r"^\s+|[\s\\]+$"), ""),
    (re.compile(rf"^{_GROUP}$"), r"\1"),
    (re.compile(r"^(-?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),  # 2 1/2
    (re.compile(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)$"), r"\1 \\times 10^{\2}"),  # 3e8
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
    for said in said_expressions(text, require_boxed):
        for _, right in golds:
            try:
                equal = verify(right, said, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
                if equal and all(agree(right, said) for agree in (_same_size, _same_base, _same_equation)):
                    return 1.0
            except MemoryError as error:  # the worker's limit, and no verdict
                return error
            except Exception:  # Math-Verify's own rule: what SymPy cannot compare has not been shown to be equal
                continue
    return 0.0


def _same_size(golds: list[Any], saids: list[Any]) -> bool:
    """Whether two numbers agree to one part in a thousand: to Math-Verify small numbers of any size are equal.

    What is no number passes, and so does a percentage: 50% and 50 are one answer to it.
    """
    from sympy import Expr, UnevaluatedExpr

    gold, said = golds[0], saids[0]
    if not all(isinstance(each, Expr) and each.is_number and not each.has(UnevaluatedExpr) for each in (gold, said)):
        return True
    if gold == said:  # infinity, whose difference from itself is no number
        return True
    one, other = gold.evalf(), said.evalf()
    return bool(abs(one - other) <= max(abs(one), abs(other)) / 1000)


def _same_base(golds: list[Any], saids: list[Any]) -> bool:
    """Whether numerals such as 204_5 and 204_8 name the same bases; one may leave out its own."""
    one, other = (["".join(each) for each in _BASE.findall(str(text))] for *_, text in (golds, saids))
    return not one or not other or one == other


def _same_equation(golds: list[Any], saids: list[Any]) -> bool:
    """Whether two equations can be one: to Math-Verify any two are that SymPy finds no solution of."""
    from sympy import Eq, simplify, solve

    gold, said = golds[0], saids[0]
    if gold == said or not (isinstance(gold, Eq) and isinstance(said, Eq)):
        return True
    if gold.free_symbols != said.free_symbols:
        return False
    return simplify((gold.lhs - gold.rhs) - (said.lhs - said.rhs)) == 0 or bool(solve(gold, gold.free_symbols))


def gold_expressions(gold: str) -> list[Any]:
    """What Math-Verify reads in a gold answer: a SymPy expression and its LaTeX, or nothing (12:00 is 12 / 0)."""
    from sympy import nan, zoo

    found = _parse_gold(gold)
    return [] if all(isinstance(each, str) or each in (nan, zoo) for each in found) else found


def _parse_gold(gold: str) -> list[Any]:
    """A gold answer as a whole, or nothing; never a number in it.

    Formulas with "and", "or" and punctuation between them are a list. Beside one there may be words, and in a text
    without a formula one number; of several the last counts where the text speaks of its "answer".
    """
    gold = sized(gold)
    answer = final_answer(gold)
    if answer is not None:
        return [] if _is_half(gold) or _is_scaled(gold) else _parse_latex(answer)
    formulas = ["".join(each) for each in _FORMULA.findall(gold)]
    beside = _FORMULA.sub(" ", gold).strip()
    if not formulas and not _is_prose(gold):
        return _parse_latex(gold)
    if formulas and _JOINED.fullmatch(beside):
        return _parse_latex(", ".join(formulas))
    if len(formulas) == 1 and _PERCENT.fullmatch(f"0{beside}"):
        return _parse_latex(rf"{formulas[0]}\%")
    if len(formulas) == 1 and _WORDS.fullmatch(beside) and not SIZE_WORD.search(beside):
        return _parse_latex(formulas[0])
    is_one = not formulas and len(_NUMERAL.findall(gold)) == 1
    return _parse_text(gold) if is_one or re.search(r"\banswer\b", beside, re.IGNORECASE) else []


def _is_scaled(text: str) -> bool:
    r"""Whether a word of size stands behind the last box: of "\boxed{\frac{1}{2}} million" the box is no answer."""
    found = boxes(text)
    return bool(found and SIZE_WORD.match(text, len(text) - len(text[found[-1][1] :].lstrip(" $\\~,)]"))))


def _is_half(gold: str) -> bool:
    """Whether the last box shares its sentence with another answer: the gold "1 pen and 2 books" is not 2."""
    found = boxes(gold)
    apart = [(one, other) for one, other in pairwise(found) if not _JOINT.fullmatch(gold, one[1], other[0])]
    return any(one[2] != other[2] and not re.search(r"[.!?\n]", gold[one[1] : other[0]]) for one, other in apart[-1:])


def said_expressions(text: str, require_boxed: bool) -> list[list[Any]]:
    """What Math-Verify reads in a completion, in the same form; twice where a letter at the end may be a unit."""
    text = sized(text)
    answer = boxed_answer(text) if require_boxed else final_answer(text)
    if _is_scaled(text) or (answer is None and require_boxed):
        return []
    read, said = (_parse_text, text) if answer is None else (_parse_latex, answer)
    return [read(said, units) for units in (False, True)[: 1 + bool(_MAYBE_UNIT.search(said))]]


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


def _parse_latex(answer: str, units: bool = False) -> list[Any]:
    """The whole of an answer as LaTeX; Math-Verify does not search it for a part that can be read."""
    from math_verify import LatexExtractionConfig, parse

    steps = (("([{".find(letter) >= 0) - (")]}".find(letter) >= 0) for letter in answer)
    if len(answer) > MAX_ANSWER or max(accumulate(steps), default=0) > MAX_DEPTH or _TIME.search(answer):
        return []
    answer = sized(_spelled(answer))
    for pattern, spelling in _WHOLE:
        answer = pattern.sub(spelling, answer)
    answer = _both_signs(_variables(_REPEATING.sub(_fraction, answer), units))
    if _NUMBERS.fullmatch(answer):  # "1 234" is one number; others are no answer (Math-Verify adds them up)
        answer = "".join(answer.split()) if _SPACED_NUMBER.fullmatch(answer) else ""
    percent = _PERCENT.fullmatch(answer)  # which it reads behind a formula, and not inside
    if percent:
        return parse(f"\\[{percent[1]}\\]%", [LatexExtractionConfig(boxed_match_priority=-1)], parsing_timeout=None)
    config = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    return parse("\\boxed{" + answer + "}", [config], parsing_timeout=None) if answer else []


def _spelled(formula: str) -> str:
    for pattern, spelling in _SPELLINGS:
        formula = pattern.sub(spelling, formula)
    return formula


def _variables(formula: str, units: bool) -> str:
    """A formula whose last letter Math-Verify leaves alone; with `units` only where the rest has letters too."""
    rest = _NUMERIC.sub("", _LETTER.sub("", formula).rpartition("=")[2])
    return formula if units and not re.search(r"[A-Za-z]", rest) else _LETTER.sub(r"{\g<0>}", formula)


def _both_signs(answer: str) -> str:
    r"""A list with \pm as a longer one: 1, 2 \pm 3 is 1, 2 + 3, 2 - 3."""
    depths = accumulate((letter in "([{") - (letter in ")]}") for letter in answer)
    cuts = [place for place, depth in enumerate(depths) if answer[place] == "," and not depth]
    if not cuts or r"\mp" in answer:
        return answer
    parts = [answer[begin:end] for begin, end in zip([0, *(cut + 1 for cut in cuts)], [*cuts, None], strict=True)]
    return ",".join(part.replace(r"\pm", sign) for part in parts for sign in ("+-" if r"\pm" in part else "+"))


def _fraction(repeating: re.Match[str]) -> str:
    r"""A repeating decimal as a fraction: 0.1\overline{6} is 16 - 1 over 90."""
    whole, fixed, period = repeating.groups()
    above = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{above}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _parse_text(text: str, units: bool = False) -> list[Any]:
    """The answer that Math-Verify finds in the last characters of a text, a formula or a number; no piece of one."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    if len(text) > TAIL:  # from the beginning of a line on, so that no formula is cut in two
        text = text[-TAIL:].partition("\n")[2] or text[-TAIL:]

    def spelled(formula: re.Match[str]) -> str:
        begin, end = (place - formula.start() for place in formula.span(formula.lastindex or 0))
        inside = _EDGES.sub("", _spelled(formula[0][begin:end]))
        inside = _both_signs(_variables(inside, units))
        percent = _PERCENT.fullmatch(inside)  # which it reads behind a formula, and not inside
        return formula[0][:begin] + (f"{percent[1]}{formula[0][end:]}%" if percent else inside + formula[0][end:])

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(_FORMULA.sub(spelled, text), configs, extraction_mode="first_match", parsing_timeout=None)
