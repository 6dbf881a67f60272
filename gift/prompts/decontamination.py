"""When two prompts are the same: equal but for case, spaces and punctuation, or sharing a run of words.

Everything is linear in the text and has one answer for the same prompts, whatever their order.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from gift.rewards.characters import INVISIBLE

# Scripts that write no spaces between words: each character is a unit. (Thai, Lao, Myanmar, Khmer; kana; Han.)
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
UNITS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
# Marks of sentences, not of formulas: 3.5, 1:2 and 1,000 keep theirs, and so do operators, brackets and primes.
MARKS = '.,:;?"\u201c\u201d\u201e\u00ab\u00bb\u3001\u3002\u300c\u300d'
AROUND_SYMBOL = re.compile(r" ?([!-/:-@\[-^`{-~\u00b1\u00d7\u00f7\u2200-\u22ff]) ?")
SENTENCE_MARK = re.compile(rf"(?<!\d)[{MARKS}]|[{MARKS}](?!\d)")


def normalized(text: str) -> str:
    """The text without differences of typography: NFKC, case folded, no marks of sentences, single spaces.

    Operators stay: `12/4` and `12*4` are two problems, `12/4` and `12 / 4` are one.
    """
    folded = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).casefold().replace("\u2019", "'")
    return AROUND_SYMBOL.sub(r"\1", " ".join(SENTENCE_MARK.sub(" ", folded).split()))


def units(text: str) -> list[str]:
    """The words of a text, normalised; in scripts without spaces its characters."""
    return UNITS.findall(normalized(text))


def shared_runs(train: Sequence[str], held_out: Sequence[str], ngram: int, max_prompts: int) -> list[str | None]:
    """For each training text the first run of `ngram` units that a held-out text has too, or None.

    A run that stands in more than `max_prompts` of the held-out texts belongs to a phrase that data sets put around
    their problems ("the last line of your answer should be"). The words of phrases are taken out of all texts first: a
    match needs `ngram` words of a problem's own. (GPT-3 had such a rule for its training documents: arXiv 2005.14165,
    appendix C.) A text with fewer own units than `ngram` is compared whole, operators included.
    """
    held_out_units = [units(text) for text in held_out]
    phrases = {run for run, count in _counts(held_out_units, ngram).items() if count > max_prompts}
    own = [_own(words, phrases, ngram) for words in held_out_units]
    telling = {run for run, count in _counts(own, ngram).items() if count <= max_prompts}
    whole = {normalized(text) for text, words in zip(held_out, own, strict=True) if len(words) < ngram}
    found: list[str | None] = []
    for text in train:
        words = _own(units(text), phrases, ngram)
        runs, known = (_runs(words, ngram), telling) if len(words) >= ngram else ([normalized(text)], whole)
        found.append(next((run for run in runs if run in known), None))
    return found


def _runs(words: list[str], ngram: int) -> list[str]:
    return [" ".join(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]


def _counts(texts: Iterable[list[str]], ngram: int) -> Counter[str]:
    """In how many of the texts each run stands."""
    return Counter(run for words in texts for run in set(_runs(words, ngram)))


def _own(words: list[str], phrases: set[str], ngram: int) -> list[str]:
    """The words that no phrase covers."""
    if not phrases:
        return words
    covered = 0  # up to this place
    own = []
    for place, word in enumerate(words):
        if " ".join(words[place : place + ngram]) in phrases:
            covered = place + ngram
        if place >= covered:
            own.append(word)
    return own
