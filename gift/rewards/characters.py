"""Characters that nobody sees, and the digits of every script: what to unify before texts are compared."""

import re
import unicodedata

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


def plain_digits(text: str) -> str:
    """The text with ASCII digits, and the signs of numbers and formulas at ASCII's width; without invisible marks.

    Unlike NFKC it keeps what has a meaning of its own: the superscript of x² and the fraction ½. Wide braces,
    backslashes and dollars stay too, so that nothing becomes LaTeX that was none.
    """
    if text.isascii():
        return text
    text = _WIDE_THOUSANDS.sub(",", text.translate(INVISIBLE | _JOINERS)).translate(_FORMS)
    return _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
