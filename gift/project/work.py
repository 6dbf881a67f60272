"""A stage's unfinished work: a folder keyed by everything that shapes the result, and the rename that publishes it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift.project.code import check_code
from gift.project.errors import UserError

ROOT = Path("data/.work")


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path, exclude: frozenset[str] = frozenset()) -> str:
    """sha256 over names and contents of the files below a folder."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in exclude and path.parent.name != "__pycache__"
    )
    entries = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def rewards_digest(settings: Any, code: str) -> str:
    """sha256 over what makes rewards: their settings, the stage's code, and the files of the folder rewards/."""
    content = [settings, code, tree_digest(Path("rewards"))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Work:
    """The work folder of one run of a stage; parts finished before a crash are found again.

    `label` is `generate@r1`, or `prepare` where there is one for all rounds. `inputs` (JSON) is all that the result
    depends on: settings, seed, digests of the input tables and policies. The fingerprint of the stage's code is added.
    When any of it differs from what the folder was begun with, the folder starts empty.
    """

    def __init__(self, label: str, inputs: dict[str, Any]) -> None:
        self.label, self.folder, self.stage = label, ROOT / label, label.partition("@")[0]
        self.code = check_code(self.stage)
        content = json.dumps({"inputs": inputs, "code": self.code}, sort_keys=True)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        stamp = self.folder / "fingerprint"
        if not stamp.exists() or stamp.read_text() != fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            stamp.write_text(fingerprint)

    def publish(self, moves: dict[Path, Path]) -> None:
        """Rename finished files and folders to their declared outputs, then drop the work folder."""
        check_code(self.stage, self.code)
        for source, target in moves.items():
            refuse_existing(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(source, target)
        shutil.rmtree(self.folder)


def refuse_existing(*outputs: Path) -> None:
    """A stage never overwrites: DVC removes the outputs of a stage that it runs again."""
    for path in outputs:
        if path.exists():
            raise UserError(f"{path}: exists already; nothing was changed; `dvc repro -f -s <stage>` makes it again")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The temporary name to write a file under; it is renamed in the end, so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def write_text(path: Path, content: str) -> None:
    """UTF-8, whole or not there."""
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Sorted, indented JSON, whole or not there; NaN is refused, for other readers do not know it."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
