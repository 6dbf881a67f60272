"""The one exception for a user's mistake, and what a machine refuses: one line each, and exit code 1."""

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import click

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|failed to map segment", re.IGNORECASE
)


PLENTY = 10**9
"""Bytes free on a disk that may not be the one that is full."""


class UserError(click.ClickException):
    """A mistake of the user: what is wrong, where (key, file, row), the rule, and the remedy, in one message."""

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.message}", err=True)


def refused(error: Exception) -> UserError | None:
    """What a full disk, a folder that cannot be written, or too few file handles say of themselves; None: a bug's."""
    number = getattr(error, "errno", None)
    named = getattr(error, "filename", None)
    said = _said(error)
    path = Path(str(named)) if named else next(each for each in (Path("data/.work"), Path()) if each.exists())
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in said:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        if not named and free > PLENTY:  # what was written names no file
            return UserError(
                f"no room left, though {amount(free)} are free on the project's disk: what was written is larger, or "
                "goes elsewhere (stdout, TMPDIR); make room, and `make repro` goes on from here"
            )
        return UserError(
            f"{path}: no room left on its disk ({amount(free)} free); make room, and `make repro` goes on from here"
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"{path}: {error.strerror}; let this user write there, or move the project")  # type: ignore[attr-defined]
    if number in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{path}: {error.strerror}; name another place")  # type: ignore[attr-defined]
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(said):
        first = next(
            (line.strip() for line in said.splitlines() if _OUT_OF_MEMORY.search(line)), "no more is to be had"
        )
        return UserError(
            f"out of memory ({first}); lower launch.yaml: tokens_per_batch of this stage, or see `gift doctor`; "
            "`make repro` goes on from here"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return UserError("too many files are open; `ulimit -n 4096` in this shell, and `make repro` goes on from here")
    return None


def _said(error: BaseException | None) -> str:
    """The messages of an error and of those that it came from."""
    return f"{error}\n{_said(error.__cause__)}" if error else ""


def in_a_line(error: Exception) -> str:
    """Its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def amount(number: float) -> str:
    """Bytes for people, in powers of 1000: 84 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def counted(number: int, noun: str) -> str:
    """1 round, 4 rounds."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def wrong_param(key: str, value: Any, problem: str) -> UserError:
    """The error of one key of params.yaml: its value, the rule and the remedy."""
    return UserError(f"params.yaml: {key}: {value!r}: {problem}")
