"""The installed packages, against the lock of this environment's flavour and what the project itself asks for."""

import re
import sys
import tomllib
from pathlib import Path


def lock_file(folder: Path = Path("requirements")) -> Path:
    return folder / ("gpu.txt" if "vllm" in installed_packages() else "cpu.txt")


def unlike(lock: Path) -> tuple[list[str], dict[str, str]]:
    """The locked packages that are not installed, and those in another version, each with both in words."""
    installed = installed_packages()
    lines = re.findall(r"^([\w.-]+)==([^\s+]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    locked = {_plain(name): version for name, version in lines}
    there = {name: installed[name].partition("+")[0] for name in locked if name in installed}
    others = {
        name: f"{name} {version} (locked {locked[name]})" for name, version in there.items() if version != locked[name]
    }
    return [name for name in locked if name not in installed], others


def installed_packages() -> dict[str, str]:
    """Name and version of all on the path, by the names of their folders: reading 240 files takes half a second."""
    found: dict[str, str] = {}
    for path in (path for folder in sys.path for path in Path(folder).glob("*.dist-info")):
        name, _, version = path.stem.partition("-")
        found.setdefault(_plain(name), version)
    return found


def asked_for(project: Path = Path("pyproject.toml")) -> set[str]:
    """The packages that pyproject.toml asks for itself, vLLM in either flavour too."""
    if not project.is_file():
        return set()
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = content.get("optional-dependencies", {})
    asked = [*content["dependencies"], *extras.get("cpu", []), *extras.get("gpu", [])]
    return {_plain(re.split(r"[=<>~!\[; ]", name)[0]) for name in asked}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
