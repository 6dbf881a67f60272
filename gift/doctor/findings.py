"""A finding of `gift doctor`: one line that says how bad it is, where, what, and what to change."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partialmethod
from typing import Literal

import click

from gift.project.errors import UserError

Level = Literal["ok", "note", "warning", "error"]
COLOURS = {"ok": "green", "note": None, "warning": "yellow", "error": "red"}
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
# "params.yaml: update.lr: -1.0: must be greater than 0": file, then key, then what is wrong.
_PLACE = re.compile(r"(?P<file>\S+\.(?:yaml|toml)(?::\d+)?): (?:(?P<key>[a-z_][\w./-]*): )?(?P<text>.+)")


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

    @property
    def line(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


@dataclass(frozen=True)
class Theme:
    """Findings about one thing, made of lines as stages end with; the place that a line begins with becomes `where`."""

    name: str

    def found(self, level: Level, line: str, where: str = "") -> Finding:
        text = " ".join(line.split())
        place = None if where else _PLACE.fullmatch(text)
        if place is None:
            return Finding(level, self.name, text, where)
        return Finding(level, self.name, place["text"], ": ".join(filter(None, (place["file"], place["key"]))))

    ok, note = partialmethod(found, "ok"), partialmethod(found, "note")
    warning, error = partialmethod(found, "warning"), partialmethod(found, "error")

    def refused(self, error: UserError, before: str = "", level: Level = "error") -> list[Finding]:
        """What a stage would end with: a finding for each line, with `before` in front of it."""
        return [self.found(level, before + line) for line in error.message.split("\n       ")]


def report(findings: Sequence[Finding]) -> list[str]:
    """Aligned lines, by theme, the worst last: the terminal shows them right above the prompt."""
    themes = list(dict.fromkeys(finding.theme for finding in findings))
    width = max(map(len, themes), default=0)
    ordered = sorted(findings, key=lambda each: (LEVELS.index(each.level), themes.index(each.theme)))
    lines = []
    for finding in ordered:
        level = click.style(f"{finding.level:<7}", fg=COLOURS[finding.level])
        lines.append(f"{level}  {finding.theme:<{width}}  {finding.line}")
    return lines


def has_error(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


def closing(findings: Sequence[Finding]) -> str:
    """The counts in one line."""
    number = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    words = [f"{number['ok']} ok"]
    words += [f"{number[level]} {level}{'s' * (number[level] != 1)}" for level in LEVELS[1:]]
    return f"doctor: {', '.join(words)}"
