"""DVC with a dvc.lock that is read and written in blocks, and whole or not at all: `python -m gift.upkeep.dvc repro`.

DVC itself reads and writes all of it as YAML after each stage: at 100 rounds some 20 seconds, during which a kill cuts
the file. The bytes are DVC's own; `dvc repro` by itself works as ever, and takes longer.
"""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gift.project import yaml
from gift.project.graph import GRAPH
from gift.upkeep.command import ONLY


def main() -> int:
    import dvc.cli
    from dvc.dvcfile import Lockfile

    theirs = {name: getattr(Lockfile, name) for name in ("_load_yaml", "dump_stages")}

    def load(self: Any, **options: Any) -> tuple[Any, str]:
        if options.get("round_trip") or not _is_here(self):
            return tuple(theirs["_load_yaml"](self, **options))
        text = Path(self.path).read_text(encoding="utf-8")
        if yaml.blocks_of(text) is None:
            return tuple(theirs["_load_yaml"](self, **options))
        return yaml.load_lock(text, Path(self.relpath)), text

    def dump(self: Any, stages: Any, **options: Any) -> None:
        path = Path(self.path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        made = {} if not _is_here(self) else {name: block for each in stages for name, block in _blocks(each, options)}
        new = yaml.with_stages(text, made) if made else None
        if new is None:
            theirs["dump_stages"](self, stages, **options)
        elif new != text:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(new, encoding="utf-8")
            os.replace(temporary, path)
            self.repo.scm_context.track_file(self.relpath)

    Lockfile._load_yaml, Lockfile.dump_stages = load, dump
    silence_hints()
    if only := json.loads(os.environ.pop(ONLY, "[]")):  # it is no business of what a stage starts
        read_only(only)
    return int(dvc.cli.main())


def silence_hints() -> None:
    """Leave out what DVC says at the end of a run of `git add`, autostage and pushing: `gift repro` says it."""
    from dvc.commands.repro import CmdRepro
    from dvc.repo.scm_context import SCMContext
    from dvc.ui import ui

    begin = SCMContext.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.quiet = True

    def run(self: Any) -> int:
        if not self.repo.reproduce(**self._common_kwargs, **self._repro_kwargs):
            ui.write("Data and pipelines are up to date.")
        return 0

    SCMContext.__init__, CmdRepro.run = init, run


def read_only(addresses: Sequence[str]) -> None:
    """Let DVC know these stages of dvc.yaml and no others: of 900 it takes 7 s to read and 14 s to look at each.

    What the others made are files like any other. They run in the order given: what kept a stage behind another may be
    one that is not read, and DVC's own order is that of a set where another dvc.yaml has more stages (compare/ has;
    networkx goes through the smaller side of a subgraph). Only for a run of stages that `plan` found: it looks at all.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import reproduce
    from dvc.stage.loader import StageLoader

    def names(self: Any) -> list[str]:
        here = Path(self.dvcfile.path).samefile(GRAPH)
        return [name for name in self.resolver.get_keys() if here and name in addresses]

    def ordered(graph: Any, *_: Any, **__: Any) -> list[Any]:
        found = {stage.name: stage for stage in graph}
        if gone := [name for name in addresses if name not in found]:
            raise DvcException(f"{', '.join(gone)}: no such stage any more: {GRAPH} changed meanwhile; run again")
        return [found[name] for name in addresses]

    StageLoader.__iter__ = lambda self: iter(names(self))
    StageLoader.__len__ = lambda self: len(names(self))
    reproduce.plan_repro = ordered


def _is_here(file: Any) -> bool:
    """Whether it is the working copy's, and not one in a commit."""
    return getattr(file.repo.fs, "protocol", "") in ("local", ("local", "file")) or type(file.repo.fs).__name__ == (
        "LocalFileSystem"
    )


def _blocks(stage: Any, options: dict[str, Any]) -> list[tuple[str, str]]:
    """What DVC would write of a stage, in the place that it has in the file."""
    from dvc.stage import serialize
    from dvc.utils.serialize._yaml import _dump

    stream = io.StringIO()
    _dump({"stages": serialize.to_lockfile(stage, **options)}, stream)
    text = stream.getvalue().removeprefix("stages:\n")
    return list((yaml.blocks_of(yaml.HEAD + text) or {}).items())


if __name__ == "__main__":
    raise SystemExit(main())
