"""What a page says of a round, kept in data/.cache: a round more costs what it takes itself."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.work import write_text

Made = dict[str, Any]
CACHE = Path("data/.cache/report")
FORM = 1
"""Raised where what is kept has another form."""


def kept(kind: str, name: str, room: int, sources: Sequence[Path], make: Callable[[], Made]) -> Made:
    """What `make` makes, kept in data/.cache until one of the files that it is made of changes.

    `missing` in its place, where a table is not here or is not what it should be.
    """
    said = json.dumps([FORM, room, [_state(path) for path in sources]])
    stamp = hashlib.sha256(said.encode()).hexdigest()
    path = CACHE / f"{kind}-{name}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return dict(known["made"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not made yet, or cut: it is made anew
    try:
        made = make()
    except UserError as error:
        return {"name": name, "missing": error.format_message().splitlines()[0]}
    write_text(path, json.dumps({"stamp": stamp, "made": made}))
    return made


def _state(path: Path) -> list[Any]:
    """Names, sizes and times of a file, or of those in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(each.name, each.stat()) for each in files if each.exists()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
