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
        free = amount(shutil.disk_usage(there).free)
        return UserError(
            f"{path}: no room left on its disk ({free} free); make room, and `make repro` goes on from here"
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"{path}: {error.strerror}; let this user write there, or move the project")  # type: ignore[attr-defined]
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


def amount(number: float) -> str:
    """Bytes for people, in powers of 1000: 84 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def wrong_param(key: str, value: Any, problem: str) -> UserError:
    """The error of one key of params.yaml: its value, the rule and the remedy."""
    return UserError(f"params.yaml: {key}: {value!r}: {problem}")
