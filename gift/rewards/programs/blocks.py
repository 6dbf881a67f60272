"""The program in a completion: of its fenced blocks the one of Python that answers, and defines what is wanted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# `*+`, `{3,}+` and `?+` never give back what they took, so that every line is read in one pass, whatever it holds.
_FENCE = re.compile(
    r"(?P<margin>[ \t]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?+)(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[^\s`]*+)[^`]*+"
)
_THOUGHT_ENDS = re.compile(r"[ \t]*+(?P<fence>`{3,}+|~{3,}+)?+[ \t]*+</think>")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")  # those of Python's source; str.splitlines knows more
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*+(?![\w-])", re.IGNORECASE)  # also py3, python3.11, {.python}


@dataclass(frozen=True)
class _Block:
    text: str
    language: str
    is_closed: bool
    thought: int  # of how many that have ended before it, the completion's last being its answer


def program_of(text: str, whole: bool = False, wanted: Sequence[str] = ()) -> str | None:
    """The fenced block that is the program; without one, the text itself if `whole`.

    Blocks behind `</think>` come before those of a thought. Of them it is the one that defines most of the `wanted`
    names; of several one marked as Python, and not with no language; of several a closed one; of several the last.
    """
    blocks = [block for block in _blocks(text) if not block.language or _PYTHON.match(block.language)]
    if not blocks:
        return text if whole else None
    blocks = [block for block in blocks if block.thought == blocks[-1].thought]
    defined = [
        re.compile(rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)", re.MULTILINE)
        for name in map(re.escape, wanted)
    ]

    def worth(block: _Block) -> tuple[int, bool, bool]:
        return sum(bool(each.search(block.text)) for each in defined), block.language != "", block.is_closed

    return max(reversed(blocks), key=worth).text


def _blocks(text: str) -> list[_Block]:
    """All fenced blocks; one that is open where a thought or the text ends, ends there too."""
    found: list[_Block] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    thought = 0
    for line in _LINE_ENDS.split(text):
        ends = _THOUGHT_ENDS.match(line) if opened else None
        if opened and ends:
            found.append(_block(opened, lines, ends["fence"] is not None, thought))
            opened = None
        if not opened and "</think>" in line:
            thought += 1
            line = line.rpartition("</think>")[2]
        match = _FENCE.fullmatch(line)
        if opened is None:
            opened, lines = match, []
        elif match and match["fence"].startswith(opened["fence"]) and not match["language"]:
            found.append(_block(opened, lines, True, thought))
            opened = None
        else:
            lines.append(line)
    return [*found, _block(opened, lines, False, thought)] if opened else found


def _block(opened: re.Match[str], lines: list[str], is_closed: bool, thought: int) -> _Block:
    """A block without the margin of its fence, as inside a list."""
    margin = len(opened["margin"])
    text = "\n".join(line[min(margin, len(line) - len(line.lstrip(" \t"))) :] for line in lines)
    return _Block(text, opened["language"], is_closed, thought)
