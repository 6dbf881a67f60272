"""Rewards that compare a completion, or a part of it, with gold answers: texts, patterns, one letter, or a number."""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal
from unicodedata import category, normalize

from gift.rewards.characters import INVISIBLE, plain_digits
from gift.rewards.signature import checked
from gift.rewards.text import (
    Completions,
    Marker,
    Value,
    answer_part,
    boxes,
    compiled,
    each_row,
    gold_texts,
    shown,
    sized,
)

# Inside a number punctuation has a meaning: "1.5" is not "15", "-5" is not "5", "5%" is not "5".
_IN_NUMBER = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<![\w)])-(?=[.\d])|(?<![\w.])\.(?=\d)|(?<=\d)%")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Letters of scripts without upper and lower case are no pieces of a Latin word: the C of "答案是C" stands alone.
_UNCASED = re.compile("[\u0590-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
_MARKUP = re.compile(r"\\(?:text|textbf|mathbf|mathrm|boxed|bf|rm)\b|[*_`$#{}\\]")
MARKER = "####"
# "-1,234.50": a sign (no minus between two terms), a currency sign on either side of it, digits in groups of three or
# ungrouped. (?>...) never gives digits back, so that "1,23" and "12kg5" are no numbers, not their beginnings.
_NUMBER = re.compile(
    r"(?:(?<![\w)])(?P<sign>-))?(?:\\?[$€£]\s?(?P<inner>-)?)?(?<![\w.,])"
    r"(?P<digits>(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+)?))(?<=[0-9])(?![.,]?\w*[0-9])",
    re.ASCII,
)


def exact_match(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    *,
    column: str = "answer",
    after: Marker | None = None,
    before: Marker | None = None,
    **columns: Any,
) -> list[Value]:
    """1 where the answer part is the gold text (or one of several) but for white space at its ends, else 0."""

    def same(text: str, gold: Any) -> Value:
        return float((answer_part(text, after, before) or "").strip() in gold_texts(gold))

    return each_row(completions, columns, column, same)


def normalized_match(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    *,
    column: str = "answer",
    after: Marker | None = None,
    before: Marker | None = None,
    keep_case: bool = False,
    keep_punctuation: bool = False,
    drop_words: Sequence[str] = (),
    contains: bool = False,
    **columns: Any,
) -> list[Value]:
    """1 where the answer part is the gold text (or one of several) after normalisation, else 0.

    That is Unicode NFKC, caseless; no invisible marks, punctuation outside numbers or dropped words; single spaces.
    With `contains` it is enough that the gold stands in it (`_stands_in`). `drop_words: [a, an, the]` gives the exact
    match of SQuAD (arXiv 1606.05250), but that punctuation inside numbers stays.
    """
    dropped = frozenset(word.casefold() for word in drop_words)

    def plain(text: str) -> str:
        text = normalize("NFKC", text).translate(INVISIBLE).replace("\u2212", "-")  # the typographic minus
        if not keep_case:
            text = normalize("NFKC", text.casefold())
        if not keep_punctuation:
            kept = {match.start() for match in _IN_NUMBER.finditer(text)}
            text = "".join(each for place, each in enumerate(text) if place in kept or category(each)[0] != "P")
        return " ".join(word for word in text.split() if word.casefold() not in dropped)

    def same(text: str, gold: Any) -> Value:
        golds = gold_texts(gold)
        wanted = [plain(each) for each in golds]
        if not all(wanted):
            raise ValueError(f"nothing is left of the gold answer {golds[wanted.index('')][:60]!r} after normalisation")
        said = plain(answer_part(text, after, before) or "")
        return float(any(_stands_in(each, said) if contains else each == said for each in wanted))

    return each_row(completions, columns, column, same)


def _stands_in(gold: str, said: str) -> bool:
    """Whether a text holds the gold, and not as a piece of a word or number: "no" is not in "know", 5 not in 1.5.

    Scripts without upper and lower case may stand side by side: Chinese and Thai put no spaces between words.
    """
    start = said.find(gold)
    while start >= 0:
        end = start + len(gold)
        edges = [(said[start - 1 : start], gold[0]), (said[end : end + 1], gold[-1])]
        if not any(_goes_on(outside, inside) for outside, inside in edges):
            return True
        start = said.find(gold, start + 1)
    return False


def _goes_on(outside: str, inside: str) -> bool:
    """Whether the character outside an edge (or "") belongs to the word or number whose character is inside."""
    cased = outside.lower() != outside.upper()
    return cased or outside.isdigit() or (inside.isdigit() and outside != "" and outside in ".,:/-%")


def regex_match(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    *,
    pattern: str,
    mode: Literal["search", "fullmatch"] = "search",
    group: int | str = 0,
    column: str | None = None,
    **columns: Any,
) -> list[Value]:
    """1 where `pattern` (Python's syntax; flags as "(?s)" at its start) is found in the completion, else 0.

    `mode`: search (anywhere) or fullmatch (the whole completion). With a `column` the text of `group` in the last
    match must be the gold text there, or one of several, but for white space at its ends.
    """
    form = compiled(pattern)
    if group not in (*range(form.groups + 1), *form.groupindex):
        raise ValueError(f"settings.group: {group!r}: the pattern has {form.groups} groups {list(form.groupindex)}")

    def found(text: str, gold: Any) -> Value:
        if column is None:
            return float((form.search if mode == "search" else form.fullmatch)(text) is not None)
        golds = gold_texts(gold)
        matches = [*form.finditer(text)] if mode == "search" else [form.fullmatch(text)]
        last = matches[-1] if matches else None
        return float(last is not None and (last[group] or "").strip() in golds)

    return each_row(completions, columns, column, found)


@checked
def multiple_choice(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
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
    anchor = re.compile("|".join(re.escape(normalize("NFKC", word)) for word in words) or r"(?!)", re.I)

    def right(text: str, gold: Any) -> Value:
        if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(letters):
            letter: str | None = letters[gold]
        else:
            letter = _leading(shown(gold), letters)
        if letter is None:  # then nothing is right
            raise ValueError(f"the gold answer {str(gold)[:60]!r} is none of the letters {letters}")
        return float(_said_letter(answer_part(text, after, before) or "", letters, anchor) == letter)

    return each_row(completions, columns, column, right)


def _said_letter(text: str, letters: str, anchor: re.Pattern[str]) -> str | None:
    text = normalize("NFKC", text)
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


def gsm8k_answer(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
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
        wanted = sized(plain_digits(shown(gold)))
        golds = [_marked(wanted)] if MARKER in wanted else _numbers(wanted)
        if len(golds) != 1 or golds[0] is None:  # nothing to compare with, which is an error and not a 0
            raise ValueError(f"the gold answer {wanted[-60:]!r} does not hold one number")
        text = sized(plain_digits(text))
        said = _marked(text)
        if said is None and last_number:
            said = last_number_of(text)
        return float(said == golds[0])

    return each_row(completions, columns, column, right)


def last_number_of(text: str) -> Decimal | None:
    """The last number of a text, or None."""
    return next(reversed(_numbers(plain_digits(text))), None)


def _marked(text: str) -> Decimal | None:
    """The one number on the line after the last "####", or None."""
    _, marker, rest = text.rpartition(MARKER)
    found = _numbers(rest.strip().split("\n")[0]) if marker else []
    return found[0] if len(found) == 1 else None


def last_number_place(text: str) -> tuple[int, int] | None:
    """Where the last number of a text is, signs included: its first character, and that behind its last."""
    plain = plain_digits(text)
    found = [match.span() for match in _matches(plain)]
    if not found or plain == text:
        return found[-1] if found else None
    places: list[int] = []  # of the characters of `plain`, in `text`
    for place, letter in enumerate(text):
        piece = plain_digits(letter)
        if not plain.startswith(piece, len(places)):  # a wide comma between thousands, which has no space behind it
            piece = piece.rstrip()
        places += [place] * len(piece)
    begin, end = found[-1]
    return places[begin], places[end - 1] + 1


def _numbers(text: str) -> list[Decimal]:
    """All numbers of a text: thousands separators, currency signs, a final period and units are left out."""
    found = []
    for match in _matches(text):
        value = Decimal(match["digits"].replace(",", ""))
        # copy_negate, for a minus would round to 28 digits
        found.append(value.copy_negate() if match["sign"] or match["inner"] else value)
    return found


def _matches(text: str) -> Iterator[re.Match[str]]:
    return _NUMBER.finditer(text.replace("\u2212", "-"))
