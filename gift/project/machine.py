"""What this machine has: its GPUs, found without torch, and its packages, against the lock of their flavour."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def with_our_code() -> dict[str, str]:
    """The environment of a process that imports this project's code, wherever it starts."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(PROJECT))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *others])}


@dataclass(frozen=True)
class Gpus:
    """NVIDIA's on this machine that this process may use; the memory of the smallest in bytes, None if not known."""

    count: int
    memory: int | None = None


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that this process may use: numbers, by their device files, or as CUDA_VISIBLE_DEVICES names them."""
    count = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    return [name for word in visible.split(",") if (name := word.strip()) not in ("", "-1")][:count]


def find_gpus(devices: Path = Path("/dev")) -> Gpus:
    """How many they are, without torch, and what `nvidia-smi` says of their memory."""
    count = len(visible_gpus(devices))
    if not count or not shutil.which("nvidia-smi"):
        return Gpus(count)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Gpus(count)
    sizes = [int(line) * 2**20 for line in said.split() if line.isdigit()]
    return Gpus(count, min(sizes, default=None))


def hardware() -> dict[str, Any]:
    """The kind of processor, how many cores this process may use, and the kinds of GPUs."""
    cpu = re.search(r"^model name\s*: (.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    gpus = (_read(path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    names = [match[1].strip() for text in gpus if (match := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))]
    return {"cpu": cpu[1] if cpu else platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpus": names}


def versions() -> dict[str, str]:
    """Of Python and of the packages that pyproject.toml asks for."""
    installed = installed_packages()
    asked = sorted({"torch", *asked_for()} & installed.keys())
    return {"python": platform.python_version(), **{name: installed[name] for name in asked}}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def lock_file() -> Path:
    return Path("requirements", "gpu.txt" if "vllm" in installed_packages() else "cpu.txt")


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


def asked_for() -> set[str]:
    """The packages that pyproject.toml asks for itself, vLLM in either flavour too."""
    project = Path("pyproject.toml")
    if not project.is_file():
        return set()
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = content.get("optional-dependencies", {})
    asked = [*content["dependencies"], *extras.get("cpu", []), *extras.get("gpu", [])]
    return {_plain(re.split(r"[=<>~!\[; ]", name)[0]) for name in asked}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
