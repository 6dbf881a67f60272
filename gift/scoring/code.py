"""What the values of a reward function depend on besides its rows: its code, the packages it uses, its settings."""

import ast
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from gift.project.work import file_digest, tree_digest
from gift.rewards.names import REWARDS
from gift.scoring.loading import Loaded

OURS = ("gift", "rewards")
FORMAT = 1  # another number makes every kept value worthless: for changes of how values are kept or made of results


def function_digest(reward: Loaded, user_folder: Path) -> str:
    """sha256 over all that shapes a function's values, its rows aside.

    That is the function's file and the project's files it imports, however far; for a function of the user every file
    of `user_folder` that is no Python; the versions of Python, of the packages those files import, and of what these
    require; settings, where the name of a local file or folder counts by its content; signature and rows of a call.
    """
    first = [Path(reward.file)] if reward.file else _project_files(REWARDS[reward.function].__module__)
    files, packages = imported_files([*first, *_adapter(reward)])
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


def _adapter(reward: Loaded) -> list[Path]:
    return _project_files("gift.rewards.verl") if reward.signature == "verl" else []


def imported_files(first: Iterable[Path]) -> tuple[set[Path], set[str]]:
    """These files and those of the project that they import, however far; and the packages that any of them imports."""
    files: set[Path] = set()
    packages: set[str] = set()
    todo = list(first)
    while todo:
        path = todo.pop().resolve()
        if path in files:
            continue
        files.add(path)
        for name in _imported_names(path):
            found = _project_files(name)
            todo.extend(found)
            if not found:
                packages.add(name.split(".")[0])
    return files, packages - {*sys.stdlib_module_names, *OURS}


def _imported_names(path: Path) -> set[str]:
    """What a file's import statements name, wherever they stand; `from a import b` names a and a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return set()  # the worker says where
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_package(path, node.level), node.module]))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def _package(path: Path, level: int) -> str:
    """The package that a relative import of so many dots starts from."""
    root = next((root for root in _roots() if path.is_relative_to(root)), None)
    return ".".join(path.relative_to(root).parts[:-level]) if level and root else ""


def _roots() -> list[Path]:
    return list(dict.fromkeys([Path.cwd().resolve(), Path(__file__).resolve().parents[2]]))


def _project_files(name: str) -> list[Path]:
    """The files that run when a.b.c is imported: those of a, a.b and a.b.c that lie in the project."""
    parts = name.split(".")
    paths = [Path(*parts[:end]) for end in range(1, len(parts) + 1)]
    options = [each for path in paths for each in (path.with_suffix(".py"), path / "__init__.py")]
    return [root / path for root in _roots() for path in options if (root / path).is_file()]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of what is imported under these names, and of all that they require."""
    found: dict[str, str] = {}
    todo = [name for package in sorted(packages) for name in _distributions(package)]
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


def _distributions(package: str) -> list[str]:
    """What to install for `import package`; the slow look through all that is installed only where the names differ."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return metadata.packages_distributions().get(package, [])
    return [package]


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
