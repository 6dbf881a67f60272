"""Which stages a run would make, again or for the first time, and why: what DVC decides on its way, told before it.

Like DVC it looks at commands, settings, MD5s of what is there, dvc.lock and the run cache. What a stage will make that
has yet to run nobody knows, so all that follows it counts as to be made; DVC may find that it stays as it was.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gift.project.graph import Record, Stage, differences, read_run

UNKNOWN = "?"
"""The digest of what a stage will make that has yet to run."""


@dataclass(frozen=True)
class Step:
    """A stage that a run would make, or take back from DVC's cache (`restored`).

    `reasons` are words; none where the stage only follows another. `again`: it has been made before.
    """

    stage: Stage
    again: bool
    restored: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Same:
    """Outputs that a stage would make as they are, although these inputs (a path, a file of settings) changed."""

    outs: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """The project as it lies there.

    digest: the MD5 of a path as in dvc.lock, or None where nothing is. settings: the value of a key of a file. cache:
    DVC's. text: what a stage that takes no time will write at a path. same: by address, of a stage of which more is
    known than that it runs again. pruned: outputs that may be gone.
    """

    stages: Mapping[str, Stage]
    lock: Mapping[str, Record]
    digest: Callable[[str], str | None]
    settings: Callable[[str, str], object]
    cache: Path
    text: Callable[[str], str | None]
    same: Callable[[str], Same | None]
    pruned: Collection[str] = ()

    @cached_property
    def makers(self) -> dict[str, Stage]:
        """The stage that makes each output."""
        return {path: stage for stage in self.stages.values() for path in stage.outs}

    @cached_property
    def near(self) -> "Near":
        """Of all outputs those at, in or around a path."""
        return Near(self.makers)

    def before(self, stage: Stage) -> Iterator[Stage]:
        """The stages whose outputs a stage reads."""
        return (self.makers[path] for dep in stage.deps for path in self.near(dep) if self.makers[path] is not stage)

    def ordered(self) -> list[Stage]:
        """The stages in the file's order, but each after those whose outputs it reads."""
        done: dict[str, Stage] = {}

        def add(stage: Stage) -> None:
            if stage.address not in done:
                for each in self.before(stage):
                    add(each)
                done[stage.address] = stage

        for stage in self.stages.values():
            add(stage)
        return list(done.values())

    def wanted(self, words: Collection[str]) -> set[str]:
        """The addresses of the stages that are among the words (`update@r2`; `update` for all rounds), and of all that
        these need; of every stage where none is."""
        todo = [stage for stage in self.stages.values() if {stage.address, stage.name} & set(words)]
        found: set[str] = set()
        while todo:
            stage = todo.pop()
            if stage.address not in found:
                found.add(stage.address)
                todo += self.before(stage)
        return found or set(self.stages)


def plan(world: World, asked: Collection[str] = ()) -> list[Step]:
    """The stages of a run in the order of their work: of what the stages among the words `asked` need, or of all."""
    found: dict[str, str | None] = {}  # of every path that a stage makes
    steps = []
    for stage in world.ordered():
        deps = _deps(stage, world, found)
        step = _step(stage, world, deps)
        record = world.lock.get(stage.address)
        if step is None or step.restored:
            made = record.outs if step is None and record else restored_outs(stage, world, deps)
            found |= made or {}
        else:
            texts = {path: world.text(path) for path in stage.outs}
            found |= {path: UNKNOWN if text is None else md5_of_text(text) for path, text in texts.items()}
            found |= _same(stage, record, world, deps)
        steps += [step] if step else []
    wanted = world.wanted(asked)
    return [step for step in steps if step.stage.address in wanted]


class Near:
    """Of some paths those that are the same as another one, lie in it or hold it."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = dict.fromkeys(paths)
        self.within: dict[str, list[str]] = {}
        for path in self.paths:
            for folder in _upwards(path):
                self.within.setdefault(folder, []).append(path)

    def __call__(self, path: str) -> list[str]:
        holding = [folder for folder in _upwards(path)[1:] if folder in self.paths]
        return [*self.within.get(path, ()), *holding]


def _upwards(path: str) -> list[str]:
    """data/prompts/train, data/prompts, data."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]


def md5_of_text(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _step(stage: Stage, world: World, deps: Mapping[str, str | None]) -> Step | None:
    """What a run would do with a stage; nothing where all is as dvc.lock has it."""
    record = world.lock.get(stage.address)
    if record is None:
        restored = restored_outs(stage, world, deps) is not None
        return Step(stage, again=False, restored=restored, reasons=("not made yet",))
    reasons = [*_inputs_that_differ(stage, record, world, deps), *_lost(stage, record, world)]
    if not (reasons or stage.always or UNKNOWN in deps.values()):
        return None
    return Step(stage, True, restored_outs(stage, world, deps) is not None, tuple(reasons))


def _deps(stage: Stage, world: World, found: Mapping[str, str | None]) -> dict[str, str | None]:
    """The digest of each dependency when the stage's turn comes."""

    def digest(dep: str) -> str | None:
        if dep in found:
            return found[dep]
        made = [path for path in world.near(dep) if path in found]  # a folder of outputs, or a file in one
        return UNKNOWN if any(found[path] != world.digest(path) for path in made) else world.digest(dep)

    return {dep: digest(dep) for dep in stage.deps}


def _inputs_that_differ(stage: Stage, record: Record, world: World, deps: Mapping[str, str | None]) -> Iterator[str]:
    if record.cmd != stage.cmd:
        yield f"the command of {stage.address} changed (dvc.yaml)"
    for file, keys in stage.params.items():
        before = record.params.get(file, {})
        for key in keys:
            for each in differences(before.get(key), world.settings(file, key), key):
                yield f"{each} changed ({file})"
    for path in {*record.deps} - {*deps}:
        yield f"{path} is no dependency any more (dvc.yaml)"
    for path, digest in deps.items():
        if digest is None:
            yield f"{path} is missing"
        elif digest not in (UNKNOWN, record.deps.get(path)):
            yield f"{path} changed"


def _same(stage: Stage, record: Record | None, world: World, deps: Mapping[str, str | None]) -> dict[str, str]:
    """Of the outputs of a stage that runs again those that it makes as they are."""
    known = None if record is None else world.same(stage.address)
    if record is None or known is None:
        return {}
    rest = {path: digest for path, digest in deps.items() if path not in known.inputs}
    settings = {file: keys for file, keys in stage.params.items() if file not in known.inputs}
    others = replace(stage, params=settings)
    before = replace(record, deps={path: each for path, each in record.deps.items() if path not in known.inputs})
    if UNKNOWN in rest.values() or [*_inputs_that_differ(others, before, world, rest)]:
        return {}
    return {path: record.outs[path] for path in known.outs if path in record.outs}


def _lost(stage: Stage, record: Record, world: World) -> Iterator[str]:
    for path, cached in stage.outs.items():
        if path in world.pruned:
            continue
        made, there = record.outs.get(path), world.digest(path)
        if there is None:
            yield f"{path} is missing"
        elif there != made:
            yield f"{path} changed"
        elif cached and made and not _in_cache(world.cache, made):
            yield f"{path} is not in DVC's cache"


def restored_outs(stage: Stage, world: World, deps: Mapping[str, str | None]) -> dict[str, str] | None:
    """What DVC would put back in place of running a stage: all it once made of the same inputs, if that is kept."""
    if not stage.restores or None in deps.values() or UNKNOWN in deps.values():
        return None
    settings = {file: {key: world.settings(file, key) for key in keys} for file, keys in stage.params.items()}
    record = world.lock.get(stage.address)
    if record and (record.cmd, record.deps, record.params) == (stage.cmd, deps, settings):
        outs = dict(record.outs)
    else:
        key = _run_key(stage, deps, settings)
        outs = _newest(world.cache / "runs" / key[:2] / key)
    kept = outs.keys() == stage.outs.keys() and all(_in_cache(world.cache, digest) for digest in outs.values())
    return outs if kept else None


def _run_key(stage: Stage, deps: Mapping[str, str | None], settings: Mapping[str, Any]) -> str:
    """The name that DVC gives to runs of the same command, inputs and settings."""
    read = [{"path": path, "hash": "md5", "md5": deps[path]} for path in sorted(stage.deps)]
    content = {"cmd": stage.cmd, "deps": read, "outs": sorted(stage.outs)}
    content |= {"params": _without_sizes(settings)} if settings else {}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_sizes(value: Any) -> Any:
    """DVC leaves such keys out, wherever they stand."""
    if isinstance(value, dict):
        return {key: _without_sizes(each) for key, each in value.items() if key not in ("size", "nfiles")}
    return [_without_sizes(each) for each in value] if isinstance(value, list) else value


def _newest(folder: Path) -> dict[str, str]:
    """The outputs of the newest run in a folder of DVC's run cache; nothing where there is none."""
    runs = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return read_run(runs[0]).outs if runs else {}


def _in_cache(cache: Path, digest: str) -> bool:
    """Whether DVC's cache has a file or, of a folder, each of its files."""
    path = cache / "files" / "md5" / digest[:2] / digest[2:]
    if not path.is_file() or not digest.endswith(".dir"):
        return path.is_file()
    try:
        return all(_in_cache(cache, each["md5"]) for each in json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # cut
        return False
