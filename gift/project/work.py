"""A stage's unfinished work: a folder keyed by everything that shapes the result, and the rename that publishes it."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gift.project.code import check_code, code_of, git_state
from gift.project.door import check_unchanged, enter, file_digest, inputs, md5_of
from gift.project.errors import UserError
from gift.project.graph import read_lock
from gift.project.machine import hardware, versions

ROOT = Path("data/.work")
MADE = Path("data/made")
"""What made each output, beside it and in git: a JSON file for each stage, `update@r1.json`."""

LOCKS = Path("data/.cache/locks")
UNITS = "units"
FINISHED = "finished.json"

_locks: dict[Path, int] = {}  # open until the process ends


def tree_digest(folder: Path, exclude: frozenset[str] = frozenset(), without: Collection[Path] = ()) -> str:
    """sha256 over names and contents of the files below a folder, but those of these names or at these paths."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in exclude and path.parent.name != "__pycache__" and path not in without
    )
    entries = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


class Work:
    """The work folder of one run of a stage; parts finished before a crash are found again.

    `label` is `generate@r1`, or `prepare` where there is one for all rounds. `inputs` (JSON) is all that the result
    depends on: settings, seed, digests of the input tables and policies. The fingerprint of the stage's code is added.
    When any of it differs from what the folder was begun with, the folder starts empty. It is this process's alone.
    """

    def __init__(self, label: str, inputs: dict[str, Any]) -> None:
        self.label, self.folder, self.stage = label, ROOT / label, label.partition("@")[0]
        self.inputs, self.git = inputs, git_state()
        self.code = check_code(self.stage)
        hold(label)
        content = json.dumps({"inputs": inputs, "code": self.code}, sort_keys=True)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        stamp = self.folder / "fingerprint"
        if not stamp.exists() or stamp.read_text() != fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "begun").write_text(str(time.time()))
            stamp.write_text(fingerprint)
        for path in leftovers(self.folder):
            path.unlink()
        for path in damaged_units(self.folder):
            path.unlink()
            click.echo(f"{path}: is not what was written before the stage was stopped; it is made again", err=True)

    def publish(self, moves: dict[Path, Path]) -> None:
        """Rename finished files and folders to their declared outputs, then drop the work folder."""
        check_unchanged(self.stage, self.code)
        refuse_existing(*moves.values())
        write_json(MADE / f"{self.label}.json", self._facts())
        found = inputs()
        outputs = [[source.relative_to(self.folder).as_posix(), str(target)] for source, target in moves.items()]
        if found and found["stage"] == address_of(self.label):
            noted = _noted(found["stage"])
            write_json(self.folder / FINISHED, {"inputs": found, "outputs": outputs, "noted": noted})
            _link(self.folder, outputs)
        else:  # nobody will note that it was made
            for source, target in moves.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(source, target)
            shutil.rmtree(self.folder)

    def _facts(self) -> dict[str, Any]:
        """What makes these outputs. They stand beside the bytes, which do not depend on the machine or the hour."""
        begun = float((self.folder / "begun").read_text())
        return {
            "stage": self.label,
            "inputs": self.inputs,
            "code": {"results": code_of(self.stage, self.code), "fingerprint": self.code},
            "git": self.git,
            "versions": versions(),
            "machine": hardware(),
            "begun": datetime.fromtimestamp(begun, UTC).isoformat(timespec="seconds"),
            "seconds": round(max(time.time() - begun, 0.0), 1),  # since the first start, pauses included
        }


def address_of(label: str) -> str:
    """What DVC calls the stage of a work folder: generate_eval@base is generate_eval_base."""
    return label.replace("@base", "_base")


def label_of(address: str) -> str:
    """What the work folder is called of a stage of DVC's."""
    return re.sub(r"_base$", "@base", address)


def publish_again() -> str | None:
    """Put the outputs of a finished stage in their places, where DVC was killed before it noted them; returns its name.

    Until then a stage keeps its work folder. Only for the very inputs that they were made of.
    """
    address = os.environ.get("DVC_STAGE", "")
    folder = ROOT / label_of(address)
    forget_noted()
    finished = _finished(folder / FINISHED) if address else {}
    if not finished:
        return None
    enter()
    if finished["inputs"] != json.loads(json.dumps(inputs())) or damaged_units(folder):
        return None
    refuse_existing(*(Path(target) for _, target in finished["outputs"]))
    _link(folder, finished["outputs"])
    return address


def forget_noted() -> None:
    """Remove the work folders of finished stages that dvc.lock has by now: it says something else of them than before.

    Or the same, where a stage was made again as it was: then its outputs are those that it tells of.
    """
    for path in ROOT.glob(f"*/{FINISHED}"):
        finished, noted = _finished(path), _noted(address_of(path.parent.name))
        if finished and (noted != finished.get("noted") or (noted and _are_there(noted["outs"]))):
            shutil.rmtree(path.parent)


def _finished(path: Path) -> dict[str, Any]:
    """What a stage wrote when it published; a file that was damaged is as none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        path.unlink(missing_ok=True)
        return {}


def _noted(address: str) -> dict[str, Any] | None:
    """What dvc.lock says of a stage, as JSON gives it back."""
    record = read_lock().get(address)
    return json.loads(json.dumps(asdict(record), default=str)) if record else None


def _are_there(outs: dict[str, str]) -> bool:
    return bool(outs) and all(Path(path).exists() and md5_of(Path(path)) == digest for path, digest in outs.items())


def _link(folder: Path, outputs: list[list[str]]) -> None:
    """Give files and folders of a work folder a second place, each whole or not there."""
    for source, target in ((folder / name, Path(place)) for name, place in outputs):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        if source.is_dir():
            shutil.copytree(source, temporary, symlinks=True, copy_function=os.link)
        else:
            os.link(source, temporary)
        os.rename(temporary, target)


def leftovers(folder: Path) -> list[Path]:
    """Files that a killed process had not finished: ours end in .tmp, those of safetensors begin so."""
    return [path for path in folder.rglob("*") if path.is_file() and (path.suffix == ".tmp" or path.name[:4] == ".tmp")]


def damaged_units(folder: Path) -> list[Path]:
    """The units of unfinished work (a part, a checkpoint) that are not as `whole_file` left them."""
    notes = folder / UNITS
    if not notes.exists():
        return []
    known: dict[str, set[str]] = {}
    for line in notes.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition(" ")
        known.setdefault(name, set()).add(digest)
    paths = [folder / name for name in known if (folder / name).is_file()]
    return [path for path in paths if file_digest(path) not in known[path.relative_to(folder).as_posix()]]


def hold(label: str) -> None:
    """Take the work folder of a stage for this process, to its end; a `UserError` names another process that has it.

    One file has all the locks, at a place for each label: nothing is left behind, and a killed process holds none.
    """
    path = LOCKS.absolute()
    if path not in _locks:
        path.parent.mkdir(parents=True, exist_ok=True)
        _locks[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    place = int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "big")
    try:
        fcntl.lockf(_locks[path], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        owner = struct.unpack("hhqqi4x", fcntl.fcntl(_locks[path], fcntl.F_GETLK, asked))[4]
        raise UserError(
            f"{label}: process {owner} is making it, on this host or another that shares the folder; wait for it, or "
            f"end it (`kill {owner}`), and run again"
        ) from None


def refuse_existing(*outputs: Path) -> None:
    """A stage never overwrites: DVC removes the outputs of a stage that it runs again."""
    for path in outputs:
        if path.exists():
            raise UserError(f"{path}: exists already; nothing was changed; `dvc repro -f -s <stage>` makes it again")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The temporary name to write a file under; it is renamed in the end, so that the file is whole or not there.

    Of unfinished work the digest is noted before: whoever goes on from a file knows whether it is as it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    if _is_work(path):
        note_unit(path, file_digest(temporary))
    os.replace(temporary, path)


def note_unit(path: Path, digest: str) -> None:
    """Note the sha256 of a unit of unfinished work; one process of a stage notes those of all, outside it is nothing.

    Several that append over a network would write over each other.
    """
    if _is_work(path):
        label, *inside = path.parts[len(ROOT.parts) :]
        with (ROOT / label / UNITS).open("a", encoding="utf-8") as notes:
            notes.write(f"{digest} {'/'.join(inside)}\n")


def _is_work(path: Path) -> bool:
    return path.parts[: len(ROOT.parts)] == ROOT.parts


def write_text(path: Path, content: str) -> None:
    """UTF-8, whole or not there."""
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """Sorted, indented JSON; NaN is refused, for other readers do not know it."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """A small file that a stage wrote; a `UserError` where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}); take it back (git, or `dvc checkout {path}`), or remove it and run `dvc repro`"
        ) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`json_text` as a file, whole or not there."""
    write_text(path, json_text(content))
