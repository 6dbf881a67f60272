"""The graph of dvc.yaml, each stage with its own paths, and what dvc.lock says of those that have run."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gift.project.errors import UserError
from gift.project.yaml import load_lock, read_yaml

GRAPH, LOCK = Path("dvc.yaml"), Path("dvc.lock")
_TEMPLATE = re.compile(r"\$\{([\w.-]+)\}")


@dataclass(frozen=True)
class Stage:
    """A stage as DVC runs it; `params` are keys such as `update` or `evaluate.correct`, by file."""

    address: str  # update@r1
    cmd: str
    deps: tuple[str, ...]
    params: dict[str, tuple[str, ...]]
    outs: dict[str, bool]  # whether DVC keeps it in its cache
    restores: bool  # whether DVC takes back what the stage once made of the same inputs, in place of running it
    always: bool  # whether DVC runs it every time

    @property
    def name(self) -> str:
        return self.address.partition("@")[0]

    @property
    def code(self) -> str:
        """The name under which stages/results.yaml has its code: evaluate_base runs that of evaluate."""
        return self.name.removesuffix("_base")

    @property
    def round(self) -> str:
        """The round, "" where there is one stage for all."""
        return self.address.partition("@")[2]


@dataclass(frozen=True)
class Record:
    """What dvc.lock says of a stage that has run: its command, settings, and MD5 of what it read and made, by path."""

    cmd: str
    deps: dict[str, str]
    params: dict[str, dict[str, Any]]
    outs: dict[str, str]


def read_graph(path: Path = GRAPH, only: str | None = None) -> dict[str, Stage]:
    """The stages of a dvc.yaml by address, in the file's order, its templates filled in as DVC does; or `only` one."""
    content = read_yaml(path)
    known = {key: value for file in content.get("vars", []) for key, value in read_yaml(path.parent / file).items()}
    stages = {}
    for name, body in content["stages"].items():
        for address, one, values in _each(name, body, known):
            if only not in (None, address):
                continue
            filled = _fill(one, {**known, **values})
            stages[address] = Stage(
                *(address, filled["cmd"], tuple(filled.get("deps", ())), _params(filled)),
                *(_outs(filled), _restores(filled), filled.get("always_changed", False)),
            )
    return stages


def read_lock(path: Path = LOCK) -> dict[str, Record]:
    """The records of a dvc.lock by address; none where there is no such file."""
    if not path.exists():
        return {}
    try:
        return dict(_records(path.read_text(encoding="utf-8"), path))
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        remedy = f"`git checkout {path}` takes back the last one in git; DVC's run cache has what was made since"
        raise UserError(f"{path}: damaged, most likely by a kill while DVC wrote it; {remedy}") from None


@lru_cache(2)
def _records(text: str, path: Path) -> dict[str, Record]:
    return {address: _record(stage) for address, stage in load_lock(text, path)["stages"].items()}


def read_run(path: Path) -> Record:
    """A file of DVC's run cache: what a stage made once."""
    return _record(_load(path))


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, as `evaluate.correct`; None where it is missing."""
    value: Any = content
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """The dotted keys of the values that differ, `update.lr`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        return [
            each
            for name in names
            for each in differences(before.get(name), now.get(name), ".".join(filter(None, (key, str(name)))))
        ]
    return [] if before == now else [key]


def _each(name: str, body: dict[str, Any], known: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The address of each stage that an entry makes, its text, and what it calls `key` and `item`."""
    if "foreach" in body:
        items = _fill(body["foreach"], known)
        pairs = items.items() if isinstance(items, dict) else [(str(item), item) for item in items]
        yield from ((f"{name}@{key}", body["do"], {"key": key, "item": item}) for key, item in pairs)
    elif "matrix" in body:
        axes = _fill(body["matrix"], known)
        rest = {key: value for key, value in body.items() if key != "matrix"}
        for values in product(*axes.values()):
            key = "-".join(map(str, values))
            yield f"{name}@{key}", rest, {"key": key, "item": dict(zip(axes, values, strict=True))}
    else:
        yield name, body, {}


def _fill(value: Any, known: dict[str, Any]) -> Any:
    """A value with its templates replaced; a text that is one template becomes the value that it names."""
    if isinstance(value, dict):
        return {_fill(key, known): _fill(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [_fill(each, known) for each in value]
    if not isinstance(value, str):
        return value
    if whole := _TEMPLATE.fullmatch(value):
        return value_at(known, whole[1])
    return _TEMPLATE.sub(lambda match: str(value_at(known, match[1])), value)


def _params(stage: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for each in stage.get("params", []):
        named = each if isinstance(each, dict) else {"params.yaml": [each]}
        for file, keys in named.items():
            found[file] = (*found.get(file, ()), *keys)
    return found


def _outs(stage: dict[str, Any]) -> dict[str, bool]:
    listed = [each for kind in ("outs", "metrics", "plots") for each in stage.get(kind, [])]
    named = [each if isinstance(each, dict) else {each: {}} for each in listed]
    return {path: flags.get("cache", True) for each in named for path, flags in each.items()}


def _restores(stage: dict[str, Any]) -> bool:
    """DVC's own rule: there are inputs, and outputs that it may put back (it has a copy of metrics and plots)."""
    flags = [next(iter(each.values())) for each in stage.get("outs", []) if isinstance(each, dict)]
    leaves = any(not each.get("cache", True) or each.get("persist", False) for each in flags)
    return bool(stage.get("deps")) and not leaves and not stage.get("always_changed", False)


def _load(path: Path) -> Any:
    """YAML by the parser in C, as DVC reads it."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def _record(stage: dict[str, Any]) -> Record:
    hashes = ({each["path"]: each["md5"] for each in stage.get(kind, [])} for kind in ("deps", "outs"))
    return Record(stage["cmd"], next(hashes), stage.get("params", {}), next(hashes))
