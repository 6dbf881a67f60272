"""`gift prune`: optimizer states that no round needs any more, out of the project and out of DVC's cache."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gift.project.graph import Record
from gift.project.rounds import Round
from gift.project.work import MADE, read_json, write_json

PRUNED = MADE / "pruned.json"
"""The rounds whose states are gone, in git: `gift repro` then tells DVC that what is missing may be."""

ALLOW_MISSING, PULL = "--allow-missing", "--pull"
"""Of `dvc repro`: what is missing and was made may stay so; it is fetched where a stage reads it."""


@dataclass(frozen=True)
class State:
    """The optimizer state of a round: its folder, its files in DVC's cache, and their size in bytes."""

    round: str
    folder: Path
    cached: tuple[Path, ...]
    size: int


def states_to_prune(rounds: Mapping[str, Round], lock: Mapping[str, Record], cache: Path, keep: int) -> list[State]:
    """The states that may go: the last `keep` of each line of rounds stay, and those that a round waits for."""
    made = {name for name in rounds if f"update@{name}" in lock}
    needed = {each.parent for each in rounds.values() if each.name not in made}
    for name in made - {rounds[name].parent for name in made}:
        line = list(_line(rounds, name))
        needed |= set(line[:keep])
    going = {str(_folder(name)) for name in made - needed}
    others = {digest for record in lock.values() for path, digest in record.outs.items() if path not in going}
    used = others | {each for digest in others for each in _objects(cache, digest)}
    return [found for name in rounds if name in made - needed and (found := _state(name, lock, cache, used)).size]


def prune(states: list[State]) -> None:
    """Remove states; first it is noted which."""
    write_json(PRUNED, {"rounds": sorted({*pruned(), *(state.round for state in states)})})
    for state in states:
        shutil.rmtree(state.folder, ignore_errors=True)
        for path in state.cached:
            path.unlink(missing_ok=True)


def pruned() -> list[str]:
    """The rounds whose states were pruned."""
    try:
        return list(read_json(PRUNED)["rounds"])
    except FileNotFoundError:
        return []


def pruned_paths() -> list[str]:
    return [str(_folder(name)) for name in pruned()]


def _line(rounds: Mapping[str, Round], name: str) -> Iterator[str]:
    """A round and those before it, back to the base."""
    while name in rounds:
        yield name
        name = rounds[name].parent


def _folder(name: str) -> Path:
    return Path(f"data/rounds/{name}/optimizer")


def _digest(lock: Mapping[str, Record], name: str) -> str:
    return lock[f"update@{name}"].outs[str(_folder(name))]


def _objects(cache: Path, digest: str) -> dict[str, Path]:
    """The files of DVC's cache that hold a folder, by digest."""
    path = cache / "files" / "md5" / digest[:2] / digest[2:]
    if not digest.endswith(".dir") or not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {digest: path} | {
        each["md5"]: cache / "files" / "md5" / each["md5"][:2] / each["md5"][2:] for each in entries
    }


def _state(name: str, lock: Mapping[str, Record], cache: Path, used: set[str]) -> State:
    cached = [path for digest, path in _objects(cache, _digest(lock, name)).items() if digest not in used]
    there = [path for path in _folder(name).rglob("*") if path.is_file()]
    # A link to the cache, hard or symbolic, takes no room of its own.
    sizes = {
        (stat.st_dev, stat.st_ino): stat.st_size
        for path in (*there, *cached)
        if path.exists()
        for stat in [path.stat()]
    }
    return State(name, _folder(name), tuple(cached), sum(sizes.values()))
