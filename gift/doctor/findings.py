"""A finding of `gift doctor`: one line that says how bad it is, where, what, and what to change."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click

from gift.project.errors import UserError

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
COLOURS = {"ok": "green", "note": None, "warning": "yellow", "error": "red"}
# "params.yaml: update.lr: -1.0: must be greater than 0": file, then key, then what is wrong.
_PLACE = re.compile(r"(?P<file>\S+\.(?:yaml|toml)(?::\d+)?): (?:(?P<key>[a-z_][\w.]*): )?(?P<text>.+)", re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """`theme` groups the findings of a report; `where` is a file and its key, or nothing where it is the machine.

    An error would stop a stage, or gives away a secret; a warning runs, but hardly as it was meant; a note is good to
    know.
    """

    level: Level
    theme: str
    text: str
    where: str = ""


def refusal(theme: str, error: UserError, level: Level = "error") -> Finding:
    """What a stage would end with, as a finding; the place that its message begins with becomes `where`."""
    message = " ".join(error.message.split())
    found = _PLACE.fullmatch(message)
    if not found:
        return Finding(level, theme, message)
    where = f"{found['file']}: {found['key']}" if found["key"] else found["file"]
    return Finding(level, theme, found["text"], where)


def report(findings: Sequence[Finding]) -> list[str]:
    """Aligned lines, by theme, the worst last: the terminal shows them right above the prompt."""
    themes = list(dict.fromkeys(finding.theme for finding in findings))
    width = max(map(len, themes), default=0)
    ordered = sorted(findings, key=lambda each: (LEVELS.index(each.level), themes.index(each.theme)))
    lines = []
    for finding in ordered:
        level = click.style(f"{finding.level:<7}", fg=COLOURS[finding.level])
        where = f"{finding.where}: " if finding.where else ""
        lines.append(f"{level}  {finding.theme:<{width}}  {where}{finding.text}")
    return lines


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each level."""
    return {level: sum(finding.level == level for finding in findings) for level in LEVELS}


def closing(findings: Sequence[Finding]) -> str:
    """The counts in one line."""
    number = counts(findings)
    words = [f"{number['ok']} ok"]
    words += [f"{number[level]} {level}{'s' * (number[level] != 1)}" for level in LEVELS[1:]]
    return f"doctor: {', '.join(words)}"


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Plain values, for JSON."""
    return [asdict(finding) for finding in findings]


def amount(number: float) -> str:
    """Bytes for people, in powers of 1000: 84 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
