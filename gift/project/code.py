"""Which code a stage runs, as one fingerprint; and the number that stages/results.yaml gives to what it makes."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "stages" / "results.yaml"
FOLDER = Path("data/code")
PARSED = Path("data/.cache/code.json")
OURS = ("gift", "stages", "rewards")
# What a person sees while a stage runs, what only refuses and what is only noted makes no byte. (No stage imports
# gift/launch.py or gift/cli/.)
UNSEEN = frozenset(
    ROOT / "gift" / "project" / f"{name}.py" for name in ("code", "console", "door", "errors", "graph", "machine")
)
UNNUMBERED = ("doctor",)  # says nothing but ok, in a second: it looks again after any edit

_new: set[str] = set()
"""The files (sha256) that this process parsed, and nobody kept yet."""

Import = tuple[int, str, tuple[str, ...]]
"""Leading dots, the module, and the names taken from it: `from ..a import b` is (2, "a", ("b",))."""


def stages() -> list[str]:
    """The names of all stages: stages/update.py is update, stages/compare/run.py is compare_run."""
    return sorted(_files_of_stages().keys() - {"code"})


def _files_of_stages() -> dict[str, Path]:
    folder = ROOT / "stages"
    paths = (path for path in folder.rglob("*.py") if path.stem != "__init__")
    return {"_".join(path.relative_to(folder).with_suffix("").parts): path for path in paths}


def fingerprint(stage: str, known: dict[str, list[Path]] | None = None) -> str:
    """12 hex digits over the project's files that a stage imports, however far.

    Of a file its syntax tree counts, without comments, layout, docstrings and whatever stands in `UserError(...)`.
    """
    files, _ = imported_files([_files_of_stages()[stage]], [ROOT], known)
    seen = sorted([path.relative_to(ROOT).as_posix(), _parse(path.read_bytes())[0]] for path in files - UNSEEN)
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:12]


def missing_modules(root: Path) -> list[str]:
    """The files of modules that a project's stages import, however far, and that are not there."""
    files, _ = imported_files((root / "stages").rglob("*.py"), [root])
    named = {
        module for path in files for _, module, _ in imports_of(path) if module.split(".")[0] in ("gift", "stages")
    }
    paths = [root.joinpath(*name.split(".")) for name in sorted(named)]
    return [
        f"{path.relative_to(root)}.py" for path in paths if not (path.is_dir() or path.with_suffix(".py").is_file())
    ]


def code_file(stage: str) -> str:
    """The path of the file that says which code a stage runs."""
    return f"{FOLDER}/{stage}.txt"


def code_of(stage: str, made: str | None = None) -> str:
    """What data/code/<stage>.txt must say: the number of its results, or `edited` and the fingerprint `made`."""
    return _number_of(stage, made or fingerprint(stage))


def codes_of(names: Iterable[str]) -> dict[str, str]:
    """`code_of` of several stages, whose modules are looked for once."""
    known: dict[str, list[Path]] = {}
    results = read_results()
    found = {stage: _number_of(stage, fingerprint(stage, known), results) for stage in names}
    _keep_parsed()
    return found


def _number_of(stage: str, made: str, results: dict[str, dict[int, list[str]]] | None = None) -> str:
    results = read_results() if results is None else results
    known = (number for number, listed in results.get(stage, {}).items() if made in listed)
    return str(next(known, f"edited {made}"))


def read_results() -> dict[str, dict[int, list[str]]]:
    """Of every stage the numbers of its results, each with the fingerprints of the code that makes them."""
    content = read_yaml(RESULTS)
    for stage, numbers in content.items():
        lists = numbers.values() if isinstance(numbers, dict) else [None]
        words = [word for each in lists for word in (each if isinstance(each, list) else [None])]
        if not all(isinstance(word, str) for word in words) or not all(isinstance(number, int) for number in numbers):
            raise UserError(f'{RESULTS}: {stage}: must be a map of numbers to fingerprints: {{1: ["8963e9bbc3d6"]}}')
    return content


def record(stage: str, *, same: bool) -> str:
    """List the stage's fingerprint under its highest number (`same` results), or under the next; returns the line."""
    numbers, made = read_results().get(stage, {}), fingerprint(stage)
    listed = numbers.setdefault(max(numbers, default=0) + (not same or not numbers), [])
    if made not in listed:
        listed.append(made)
    # By hand: a fingerprint without quotes may read as a number (123456789012, 12345e678901).
    line = f"{stage}: {{{', '.join(f'{key}: {json.dumps(each)}' for key, each in sorted(numbers.items()))}}}"
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    places = [index for index, each in enumerate(lines) if each.startswith(f"{stage}:")] or [len(lines)]
    lines[places[0] : places[0] + 1] = [line]
    RESULTS.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return line


def check_code(stage: str, before: str | None = None) -> str:
    """The fingerprint of a stage's code; a `UserError` where that is not what data/code/<stage>.txt says.

    A stage asks before its first row and, with the answer of then as `before`, before it publishes: DVC notes what a
    stage depends on after its command, and would call edited code the maker of what it has not made
    (treeverse/dvc#11058). Outside DVC, where there may be no such file, nothing is asked.
    """
    file, made = Path(code_file(stage)), fingerprint(stage)
    if before not in (None, made):
        raise UserError(
            f"{stage}: its code was edited while it ran, so nothing is published. What it made is kept: put the code "
            "back (`git stash`) and run again to publish it; with the edited code it starts anew"
        )
    said = file.read_text(encoding="utf-8").strip() if file.exists() else None
    if said is None and "DVC_STAGE" in os.environ:
        raise UserError(f"{file}: missing; run `dvc repro code`")
    if said is not None and said != _number_of(stage, made):
        raise UserError(f"{stage}: its code is not what {file} says ({said}); run `dvc repro code`, or `dvc repro`")
    return made


def git_state() -> dict[str, Any] | None:
    """The commit of the project, and which of its own files differ from it; None without git."""
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ".", ":!data", ":!dvc.lock"])
    try:
        done = [
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=30) for words in asked
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    commit, changed = (each.stdout for each in done)
    return {"commit": commit.strip(), "uncommitted": [line[3:] for line in changed.splitlines()]}


def imported_files(
    first: Iterable[Path], roots: list[Path], known: dict[str, list[Path]] | None = None
) -> tuple[set[Path], set[str]]:
    """These files and those below `roots` that they import, however far; and the packages that any of them imports.

    Import statements count wherever they stand, also inside a function. Importing a.b.c runs a and a.b too. `known`:
    the files of modules that were looked for before, to be added to.
    """
    files: set[Path] = set()
    packages: set[str] = set()
    known = {} if known is None else known
    todo = [path.resolve() for path in first]
    while todo:
        path = todo.pop()
        if path in files:
            continue
        files.add(path)
        for name in imported_names(path, roots):
            if name not in known:
                known[name] = project_files(name, roots)
            todo.extend(known[name])
            if not known[name]:
                packages.add(name.split(".")[0])
    return files, packages - {*sys.stdlib_module_names, *OURS}


def imported_names(path: Path, roots: list[Path]) -> set[str]:
    """What a file's import statements name; `from a import b` names a and a.b."""
    root = next((root for root in roots if path.is_relative_to(root)), path)
    names: set[str] = set()
    for level, module, taken in imports_of(path):
        package = path.relative_to(root).parts[:-level] if level else ()
        base = ".".join(filter(None, [*package, module]))
        names |= {base, *(f"{base}.{name}" for name in taken)}
    return names


def project_files(name: str, roots: list[Path]) -> list[Path]:
    """The files that run when a.b.c is imported: those of a, a.b and a.b.c that lie below `roots`."""
    found: list[Path] = []
    for path in roots:
        for part in name.split("."):
            module, path = path / f"{part}.py", path / part
            files = [each for each in (module, path / "__init__.py") if each.is_file()]
            if not files and not path.is_dir():
                break
            found += files
    return found


def imports_of(path: Path) -> list[Import]:
    return _parse(path.read_bytes())[1]


def _parse(source: bytes) -> tuple[str, list[Import]]:
    """A digest of what a file's code does, and its imports; it is read once, by whatever process."""
    key = hashlib.sha256(source).hexdigest()
    parsed = _parsed()
    if key not in parsed:
        parsed[key] = _parse_anew(source)
        _new.add(key)
    return parsed[key]


@cache
def _parsed() -> dict[str, tuple[str, list[Import]]]:
    """What `_parse` said, by the sha256 of the file; to begin with what `_keep_parsed` kept."""
    try:
        kept = json.loads(PARSED.read_text(encoding="utf-8"))
        if kept["by"] != _own_digest():
            return {}
        return {
            key: (digest, [(level, module, tuple(names)) for level, module, names in imports])
            for key, (digest, imports) in kept["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keep_parsed() -> None:
    """For the next process: to parse all files takes a second."""
    if not _new or not Path("dvc.yaml").exists():
        return
    temporary = PARSED.with_name(f"{PARSED.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        PARSED.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"by": _own_digest(), "files": _parsed()}), encoding="utf-8")
        temporary.replace(PARSED)
        _new.clear()


def _own_digest() -> str:
    """Another parser says other things of the same files."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _parse_anew(source: bytes) -> tuple[str, list[Import]]:
    """Without imports where it is not valid: whoever runs it says where."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest(), []
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    words: list[str] = []
    _write(tree, words)
    return hashlib.sha256("\0".join(words).encode()).hexdigest(), imports


def _write(node: object, words: list[str]) -> None:
    """A syntax tree as words, the same under every version of Python: fields that are empty are left out."""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 may cut the text between two values
        words.append("(f")
        for each in node.values:
            text = each.value if isinstance(each, ast.Constant) else None
            if isinstance(text, str):
                words[-1] += text
            else:
                _write(each, words)
                words.append("")
        words.append(")")
    elif isinstance(node, ast.AST):
        words.append(f"({type(node).__name__}")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in ("ctx", "kind"):
                continue
            words.append(name)
            if name in ("args", "keywords") and getattr(getattr(node, "func", None), "id", "") == "UserError":
                continue  # the words of an error
            _write(value, words)
        words.append(")")
    elif isinstance(node, list):
        words.append("[")
        for each in node:
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)):  # a docstring
                _write(each, words)
        words.append("]")
    else:
        words.append(repr(node))
