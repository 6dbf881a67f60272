"""What the values of a reward function depend on besides its rows: its code, the packages it uses, its settings."""

import hashlib
import json
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from gift.project.code import ROOT, imported_files, project_files
from gift.project.work import file_digest, tree_digest
from gift.rewards.names import REWARDS
from gift.scoring.loading import Loaded

FORMAT = 1  # another number makes every kept value worthless: for changes of how values are kept or made of results


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
    return list(dict.fromkeys([Path.cwd().resolve(), ROOT]))


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
