"""What a page says of a round, kept in data/.cache: a round more costs what it takes itself."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gift.project.errors import UserError

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
        said = error.format_message().splitlines()[0]
        return {"name": name, "missing": said.replace(f"{Path.cwd()}/", "")}
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:  # whole, and not as its stage made it
        return {"name": name, "missing": f"damaged ({type(error).__name__}: {error}); `gift verify {name}` says where"}
    write_own(path, json.dumps({"stamp": stamp, "made": made}))
    return made


def write_own(path: Path, text: str) -> None:
    """A file that several processes may write at once: whole, and the last one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _state(path: Path) -> list[Any]:
    """Names, sizes and times of a file, or of those in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(each.name, each.stat()) for each in files if each.exists()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
