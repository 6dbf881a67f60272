"""The project as it lies there, for `plan`: its graph, dvc.lock, settings, and the digests of its files."""

import configparser
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gift.project.code import code_file, codes_of, stages
from gift.project.door import md5_of, md5_of_files
from gift.project.graph import read_graph, read_lock, value_at
from gift.project.params import overrides_text
from gift.project.rounds import SECTIONS, read_rounds
from gift.project.work import write_json
from gift.project.yaml import read_yaml
from gift.upkeep.plan import Same, World
from gift.upkeep.prune import pruned_paths

DIGESTS = Path("data/.cache/md5.json")
DVC = Path(".dvc")


def read_world(
    text: Callable[[str], str | None], same: Callable[[str], Same | None], *, missing: bool = False
) -> World:
    """The project in the working folder; `text` and `same` as in `World`. `missing`: what is gone may be gone."""
    digests, lock = Digests(), read_lock()
    gone = {path for record in lock.values() for path in record.outs if not Path(path).exists()} if missing else ()
    settings = cache(lambda file: read_yaml(Path(file)))
    return World(
        read_graph(),
        lock,
        digests,
        lambda file, key: value_at(settings(file), key),
        dvc_cache(),
        text,
        same,
        {*pruned_paths(), *gone},
    )


def quick_texts() -> dict[str, str]:
    """What `code` and `overrides` will write, by path."""
    codes = {code_file(stage): f"{code}\n" for stage, code in codes_of(stages()).items()}
    rounds = read_rounds().values()
    own = {
        f"data/rounds/{each.name}/overrides/{section}.json": overrides_text(each, section)
        for each in rounds
        for section in SECTIONS
    }
    return codes | own


def dvc_cache(dvc: Path = DVC) -> Path:
    """Where DVC keeps what the stages made."""
    return dvc / _config(dvc).get("cache", "dir", fallback="cache")


def has_remote(dvc: Path = DVC) -> bool:
    """Whether DVC has somewhere to push to."""
    return _config(dvc).has_option("core", "remote")


def dvc_links(dvc: Path = DVC) -> bool:
    """Whether DVC links what lies in its cache, where the file system can, in place of copying it."""
    return bool({"hardlink", "symlink"} & set(_config(dvc).get("cache", "type", fallback="copy").strip('"').split(",")))


def _config(dvc: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    config.read([dvc / "config", dvc / "config.local"], encoding="utf-8")
    return config


class Digests:
    """MD5s of files and folders as in dvc.lock; a file that keeps size, time and inode is not read a second time."""

    def __init__(self) -> None:
        try:
            self.known: dict[str, list[Any]] = json.loads(DIGESTS.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}
        self.found: dict[str, str | None] = {}

    def __call__(self, path: str) -> str | None:
        """None where there is nothing."""
        if path not in self.found:
            self.found[path] = md5_of(Path(path), self._of_files) if Path(path).exists() else None
        return self.found[path]

    def _of_files(self, paths: Sequence[Path]) -> list[str]:
        states = {path: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for path in paths for stat in [path.stat()]}
        new = [path for path in paths if self.known.get(str(path), [None])[:-1] != states[path]]
        for path, digest in zip(new, md5_of_files(new), strict=True):
            self.known[str(path)] = [*states[path], digest]
        return [str(self.known[str(path)][-1]) for path in paths]

    def keep(self) -> None:
        """For the next look."""
        write_json(DIGESTS, {path: each for path, each in self.known.items() if Path(path).exists()})
