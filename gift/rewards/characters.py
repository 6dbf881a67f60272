"""Characters that nobody sees, digits of every script, words of size: what to unify before texts are compared."""

import re
import unicodedata
from decimal import Decimal

# Direction marks, soft hyphens, byte order marks, spaces of no width: nobody sees them.
INVISIBLE = dict.fromkeys([0xAD, 0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF])
# In Persian or Hindi the joiners (U+200C, U+200D) part words, but no numbers.
_JOINERS = dict.fromkeys([0x200C, 0x200D])
_DIGIT = re.compile(r"[^\D0-9]")  # of any script: full-width, Arabic-Indic, Devanagari, bold, ...
_WIDE_THOUSANDS = re.compile(r"(?<=[\uff10-\uff19])\uff0c(?=[\uff10-\uff19]{3}(?![\uff10-\uff19]))")
_WIDE = "\uff05\uff08\uff09\uff0a\uff0b\uff0d\uff0e\uff0f\uff1a\uff1b\uff1c\uff1d\uff1e\uff3b\uff3d\uff5c"
_FORMS: dict[int, int | str] = {ord(wide): ord(wide) - 0xFEE0 for wide in _WIDE}
_FORMS |= {code: code - 0xFEE0 for first in (0xFF21, 0xFF41) for code in range(first, first + 26)}  # letters
_FORMS |= {0x66A: "%", 0x66B: ".", 0x66C: ",", 0xFF0C: ", "}  # Arabic signs; a wide comma ends a part of a sentence
_SIZES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SIZED = re.compile(
    rf"(?<![\d.,^_])(\d[\d,]*+(?:\.\d+)?+)\s*+(\\(?:text|mathrm|textrm|mbox)\s*\{{)?+\s*+({'|'.join(_SIZES)})s?\b",
    re.IGNORECASE | re.ASCII,
)


def plain_digits(text: str) -> str:
    """The text with ASCII digits, and the signs of numbers and formulas at ASCII's width; without invisible marks.

    Unlike NFKC it keeps what has a meaning of its own: the superscript of x² and the fraction ½. Wide braces,
    backslashes and dollars stay too, so that nothing becomes LaTeX that was none.
    """
    if text.isascii():
        return text
    text = _WIDE_THOUSANDS.sub(",", text.translate(INVISIBLE | _JOINERS)).translate(_FORMS)
    return _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)


def sized(text: str) -> str:
    r"""The text with numbers written out that have a word of size behind them: "18 million", "2\text{ dozen eggs}"."""

    def written(match: re.Match[str]) -> str:
        number = Decimal(match[1].replace(",", "")) * _SIZES[match[3].lower()]
        whole = number.to_integral_value()
        return f"{whole if number == whole else number:f} {match[2] or ''}"

    for _ in range(2):  # "3 hundred thousand"
        text = _SIZED.sub(written, text)
    return text
