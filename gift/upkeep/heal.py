"""What a kill leaves of the files that DVC writes in place, mended before DVC reads them and stops."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from gift.project.door import LOCK_COPY
from gift.project.errors import UserError
from gift.project.graph import LOCK, read_lock
from gift.project.work import write_text

RWLOCK = Path(".dvc/tmp/rwlock")
BLOCK = 4096
"""A write that was cut ends at a multiple of so many bytes."""


def heal(cache: Path) -> Iterator[str]:
    """Mend what can be mended without asking, a line for each; a `UserError` names what is left to a person."""
    yield from _heal_lock()
    yield from _heal_rwlock()
    for folder in sorted((cache / "runs").glob("*/*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            yield f"{folder}: empty, left by a kill; removed"
    for path in [*Path("data").rglob(".*.tmp"), *Path("data/.cache").rglob("*.tmp")]:
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield f"{path}: left by a kill; removed"


def running() -> dict[int, str]:
    """The DVC commands that work in this project now, by process."""
    try:
        content = json.loads(RWLOCK.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {pid: command for pid, command in _infos(content) if _lives(pid, command)}


def _heal_lock() -> Iterator[str]:
    """Put back the copy of dvc.lock that the last stage kept, where the file was cut."""
    if not LOCK.exists() or not _is_cut():
        return
    try:
        kept = read_lock(LOCK_COPY)
    except UserError:
        kept = {}
    if not kept:
        read_lock(LOCK)  # which says what to do
        return
    write_text(LOCK, LOCK_COPY.read_text(encoding="utf-8"))
    yield f"{LOCK}: was cut by a kill; it is as the last stage found it, and DVC's run cache has what was made since"


def _is_cut() -> bool:
    text = LOCK.read_bytes()
    try:
        found = list(read_lock(LOCK))
        kept = list(read_lock(LOCK_COPY))
    except UserError:
        return True
    ends_inside = not text.endswith(b"\n")
    return ends_inside or (len(text) % BLOCK == 0 and len(found) < len(kept) and found == kept[: len(found)])


def _heal_rwlock() -> Iterator[str]:
    """DVC adds itself to this file some forty times a stage, and writes it in place."""
    if not RWLOCK.exists():
        return
    try:
        content = json.loads(RWLOCK.read_text(encoding="utf-8"))
        infos = list(_infos(content))
    except (ValueError, KeyError, TypeError, AttributeError):
        RWLOCK.unlink()
        yield f"{RWLOCK}: was cut by a kill; removed"
        return
    if infos and not any(_lives(*info) for info in infos):
        RWLOCK.unlink()


def _infos(content: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Process and command of each entry."""
    infos = [
        *content.get("write", {}).values(),
        *(each for several in content.get("read", {}).values() for each in several),
    ]
    yield from ((int(info["pid"]), str(info["cmd"])) for info in infos)


def _lives(pid: int, command: str) -> bool:
    """Whether the process is there and still the one that was noted: numbers of processes come again.

    DVC notes its own path and its arguments; `python -m dvc` shows as another path.
    """
    arguments = command.partition(" ")[2]
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline())  # empty while it starts
        return process.status() != psutil.STATUS_ZOMBIE and (not words or words.endswith(arguments or command))
    except psutil.Error:
        return False
