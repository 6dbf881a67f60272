"""What a stage reads, looked at when it begins and again before it publishes: DVC looks only when it has ended.

DVC notes what a stage depends on after its command (treeverse/dvc#11058). Settings, tables or code that were edited
while it ran would be called the makers of what they have not made; and of a file that keeps its size and time DVC
believes that it is as it was. Outside DVC, which then notes nothing, nothing is looked at.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gift.project.code import check_code
from gift.project.errors import UserError
from gift.project.graph import GRAPH, LOCK, Record, Stage, differences, read_graph, read_lock, value_at
from gift.project.yaml import read_yaml

LOCK_COPY = Path("data/.cache/dvc.lock")
SMALL = 1 << 20  # bytes up to which the content of a file counts, and not its time
_COMPILED = "__pycache__"  # as in .dvcignore

CHUNK = 16 << 20

_sha256: dict[tuple[str, int, int, int], str] = {}
_seen: dict[str, Any] = {}
"""What this process found at its door: the stage, its folder, and of its settings and files the state."""


def enter() -> None:
    """Take down what the stage that DVC runs here depends on; a file that is not what its stage made is refused."""
    address = os.environ.get("DVC_STAGE", "")
    if _seen and _seen["stage"].address == address:
        return
    _seen.clear()
    if not address or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    file, _, name = address.rpartition(":")
    graph = Path(file) if file else GRAPH
    stage = read_graph(graph, only=name).get(name)
    if stage is None:
        return
    lock = graph.with_name(LOCK.name)
    refuse_damage(stage, read_lock(lock))
    if lock == LOCK and lock.exists():
        _keep_copy(lock)
    _seen.update(stage=stage, folder=Path.cwd(), settings=_settings(stage), files=_files(stage))


def inputs() -> dict[str, Any] | None:
    """Of the stage that DVC runs here its address, settings and files, as they were found; None outside DVC."""
    if not _is_here():
        return None
    return {"stage": _seen["stage"].address, "settings": _seen["settings"], "files": _seen["files"]}


def _is_here() -> bool:
    """Not so where one stage works as another inside its own work folder, as those of a comparison do."""
    return bool(_seen) and Path.cwd() == _seen["folder"]


def _keep_copy(lock: Path) -> None:
    """DVC writes dvc.lock in place: a kill may cut it (gift/upkeep/heal.py puts this copy back)."""
    LOCK_COPY.parent.mkdir(parents=True, exist_ok=True)
    temporary = LOCK_COPY.with_name(f"{LOCK_COPY.name}.tmp")
    temporary.write_bytes(lock.read_bytes())
    os.replace(temporary, LOCK_COPY)


def check_unchanged(stage_name: str, code: str) -> None:
    """A `UserError` where the code, settings or files that a stage depends on are no longer those that it began with.

    `code` is what `check_code` said when it began.
    """
    check_code(stage_name, code)
    check_inputs()


def check_inputs() -> None:
    """The same of settings and files alone."""
    if not _is_here():
        return
    stage: Stage = _seen["stage"]
    changed = [
        f"{file}: {key}"
        for file, before in _seen["settings"].items()
        for key in differences(before, _settings(stage).get(file, {}))
    ]
    before, now = _seen["files"], _files(stage)
    changed += sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if changed:
        shown = ", ".join(changed[:5]) + (" and more" if changed[5:] else "")
        raise UserError(
            f"{shown}: changed while {stage.address} ran, so nothing is published. What it made is kept: put back what "
            "it began with and run again to publish it; with what is there now it starts anew"
        )


def refuse_damage(stage: Stage, lock: dict[str, Record]) -> None:
    """Compare what a stage depends on with what the stages that made it left, by the MD5 that DVC took of it."""
    made = {path: digest for record in lock.values() for path, digest in record.outs.items()}
    for path in (out for dep in stage.deps for out in made if out == dep or out.startswith(f"{dep}/")):
        if Path(path).exists() and md5_of(Path(path)) != made[path]:
            raise UserError(
                f"{path}: is not what its stage made, though it may have its size and time: it was damaged or edited, "
                f"or {LOCK} is another commit's; remove it, and `dvc checkout {path}` brings it back (what DVC does "
                "not keep: `make repro`)"
            )


def md5_of_files(paths: Sequence[Path]) -> list[str]:
    """The MD5 of each file, read in threads."""
    if len(paths) < 2:
        return [md5_of_file(path) for path in paths]
    with ThreadPoolExecutor() as threads:
        return list(threads.map(md5_of_file, paths))


def md5_of(path: Path, md5s: Callable[[Sequence[Path]], list[str]] = md5_of_files) -> str:
    """The MD5 of a file or folder as dvc.lock has it: of a folder over the names and MD5s of its files, by `md5s`."""
    if path.is_file():
        return md5s([path])[0]
    paths = list(_below(path))
    named = sorted((each.relative_to(path).as_posix(), md5) for each, md5 in zip(paths, md5s(paths), strict=True))
    entries = [{"md5": digest, "relpath": name} for name, digest in named]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def md5_of_file(path: Path) -> str:
    """Of large files both digests are taken in one reading: a policy or a state would be read twice otherwise."""
    state = _state(path)
    if state[1] <= SMALL:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    _sha256[state] = sha256.hexdigest()
    return md5.hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file; from the look at the door, if it is as it was then."""
    if (known := _sha256.get(_state(path))) is not None:
        return known
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _COMPILED not in path.parts:
            yield path


def _settings(stage: Stage) -> dict[str, dict[str, Any]]:
    """The values of the keys that a stage depends on, by file."""
    found = {}
    for file, keys in stage.params.items():
        content = read_yaml(Path(file))
        found[file] = {key: value_at(content, key) for key in keys}
    return found


def _files(stage: Stage) -> dict[str, list[int | str]]:
    """Size and time of every file that a stage depends on; of a small one its content in place of the time."""
    found: dict[str, list[int | str]] = {}
    for dep in map(Path, stage.deps):
        for path in [dep] if dep.is_file() else _below(dep):
            state = path.stat()
            found[str(path)] = [state.st_size, md5_of_file(path) if state.st_size <= SMALL else state.st_mtime_ns]
    return found
