"""What is said of an exception or a value: one line, short, and the same in every process."""

import re
from typing import Any

MAX_MESSAGE = 300


def one_line(text: str) -> str:
    """A message that is one line, short, storable, and the same in every process (no memory addresses)."""
    text = re.sub(r"0x[0-9a-fA-F]{4,}", "0x...", " ".join(text[: 100 * MAX_MESSAGE].split()))
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def describe(error: BaseException) -> str:
    """Kind and text of an exception."""
    kind = type(error).__name__
    text = str(error) if prints(error) else ""
    return one_line(f"{kind}: {text}" if text else kind)


def prints(error: BaseException) -> bool:
    """Whether an exception has a text."""
    try:
        return isinstance(str(error), str)
    except BaseException:  # a user's exception may fail to print itself
        return False


def show(value: Any) -> str:
    """The start of a value as Python writes it, or its type."""
    try:
        text = repr(value)
    except BaseException:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
