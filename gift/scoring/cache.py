"""Values of reward functions kept from run to run: scoring again calls only what is new. May be deleted any time."""

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.code import ROOT as PROJECT
from gift.project.code import imported_files, project_files
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.work import tree_digest
from gift.rewards.names import REWARDS
from gift.scoring.loading import Loaded
from gift.scoring.worker import MOST, Outcome
from gift.tables.parquet import read_file, write_file

ROOT = Path("data/.cache/scores")
FORMAT = 1  # another number makes every kept value worthless: for changes of how values are kept or made of results
KEPT = ("ok", "abstain")
SCHEMA = pa.schema([pa.field("row", pa.binary(16), nullable=False), pa.field("value", pa.float64())])


class RewardCache:
    """One file for each function and part: `<function's digest>/<label>-00000.parquet`, a null value an abstention.

    A value counts for the same function, settings and rows of its call (`function_digest`, `row_keys`). Each part
    has the last rows that were scored as this part. Labels of a round's passes (score@r1.0, score@r1.1) begin as its
    own (score@r1) and a dot.
    """

    def __init__(self, root: Path, label: str, rewards: Iterable[Loaded], user_folder: Path) -> None:
        self.label = label
        self.folders = {reward.name: root / function_digest(reward, user_folder) for reward in rewards}

    def read(self, name: str, index: int, keys: Sequence[bytes]) -> dict[int, Outcome]:
        """Outcomes by row for those of the part's rows that are kept, as this part or in a pass of the round."""
        kept = _read_values(self._path(name, index))
        if not kept.keys() >= set(keys):
            for path in sorted(self.folders[name].glob(f"{self.label}.*.parquet")):
                kept = _read_values(path) | kept
        return {
            row: Outcome(kept[key], "abstain" if kept[key] is None else "ok", None)
            for row, key in enumerate(keys)
            if key in kept
        }

    def write(self, name: str, index: int, keys: Sequence[bytes], outcomes: dict[int, Outcome]) -> None:
        """Keep the values of a part; what failed is not kept, so that it is tried again."""
        rows = sorted(row for row, outcome in outcomes.items() if outcome.status in KEPT)
        values = {keys[row]: outcomes[row].value for row in rows}
        table = pa.table([list(values), list(values.values())], schema=SCHEMA)
        write_file(self._path(name, index), table, {"artifact": "reward cache"})

    def _path(self, name: str, index: int) -> Path:
        return self.folders[name] / f"{self.label}-{index:05d}.parquet"


def _read_values(path: Path) -> dict[bytes, float | None]:
    """The values of a file by the keys of their rows; one that is damaged is as good as none."""
    try:
        table, _ = read_file(path)
    except UserError:
        return {}
    if not table.schema.equals(SCHEMA) or table["row"].null_count:
        return {}
    if not pc.all(pc.less_equal(pc.abs(table["value"]), MOST)).as_py():
        return {}
    return dict(zip(table["row"].to_pylist(), table["value"].to_pylist(), strict=True))


def row_keys(digests: Sequence[bytes], spans: Iterable[Sequence[int]]) -> list[bytes]:
    """A key for each row: of its arguments, of those of the rows that share its call, and of its place among them.

    Rows of equal calls have keys of their own, so that each keeps its own value should a function not be a pure one.
    """
    keys = list(digests)
    for span in spans:
        together = b"".join(digests[row] for row in span)
        for place, row in enumerate(span):
            if len(span) > 1:
                keys[row] = hashlib.blake2b(place.to_bytes(8) + together, digest_size=16).digest()
    times: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        times[key] = times.get(key, 0) + 1
        if times[key] > 1:
            keys[row] = hashlib.blake2b(times[key].to_bytes(8) + key, digest_size=16).digest()
    return keys


def function_digest(reward: Loaded, user_folder: Path) -> str:
    """sha256 over all that shapes a function's values, its rows aside.

    That is the function's file and the project's files it imports, however far; for a function of the user every file
    of `user_folder` that is no Python; the versions of Python, of the packages those files import, and of what these
    require; settings, where the name of a local file or folder counts by its content; signature and rows of a call.
    """
    roots = project_roots()
    names = [] if reward.file else [REWARDS[reward.function].__module__]
    names += ["gift.rewards.verl"] if reward.signature == "verl" else []
    first = [path for name in names for path in project_files(name, roots)]
    files, packages = imported_files([*([Path(reward.file)] if reward.file else []), *first], roots)
    data = [path for path in user_folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    content = {
        "format": FORMAT,
        "function": [str(reward.file), reward.function],
        "call": [reward.signature, reward.batch],
        "settings": _by_content(reward.settings),
        "code": sorted([path.name, file_digest(path)] for path in files),
        "data": sorted([str(path), file_digest(path)] for path in data) if reward.file else [],
        "versions": {"python": platform.python_version(), **versions(packages)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def project_roots() -> list[Path]:
    """The user's files lie where the project is run, ours where this file is: most often one folder."""
    return list(dict.fromkeys([Path.cwd().resolve(), PROJECT]))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of what is imported under these names, and of all that they require."""
    found: dict[str, str] = {}
    todo = []
    for package in sorted(packages):
        try:
            todo.append(metadata.distribution(package).name)
        except metadata.PackageNotFoundError:  # the slow look through all only where the names differ
            todo += metadata.packages_distributions().get(package, [])
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # asked for on another system, or imported where it may be missing
        found[name] = distribution.version
        needed = [line for line in distribution.requires or [] if "extra ==" not in line]
        todo.extend(match[0] for line in needed if (match := re.match(r"[\w.-]+", line)))
    return found


def _by_content(value: Any) -> Any:
    """A setting, with a digest for what is the name of a local file or folder (of no folder that holds the project)."""
    if isinstance(value, dict):
        return {key: _by_content(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_by_content(each) for each in value]
    if isinstance(value, str) and value:
        path = Path(value)
        with suppress(OSError, ValueError):  # a text that no file can be called
            if path.is_file():
                return [value, file_digest(path)]
            if path.is_dir() and not Path.cwd().resolve().is_relative_to(path.resolve()):
                return [value, tree_digest(path)]
    return value
