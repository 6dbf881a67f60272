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
    return one_line(f"{type(error).__name__}: {printed(error)}".removesuffix(": "))


def printed(error: BaseException) -> str:
    """The text of an exception; none where it has none, or fails to print itself."""
    try:
        return str(error)
    except BaseException:
        return ""


def show(value: Any) -> str:
    """The start of a value as Python writes it, or its type."""
    try:
        text = repr(value)
    except BaseException:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
