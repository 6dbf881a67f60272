"""What keeps `update` from starting on this machine as launch.yaml says."""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from gift.project.errors import counted
from gift.project.machine import visible_gpus
from gift.training.settings import UpdateLaunch

HOST = "`node1 slots=8`"
_LINE = re.compile(r"(\S+)\s+slots=(\d+)")


def processes_problem(launch: UpdateLaunch) -> str | None:
    """The launcher does not start so many processes."""
    where = f"launch.yaml: update.num_processes: {launch.num_processes}"
    if launch.launcher == "in_process" and launch.num_processes != 1:
        return f"{where}: in_process runs one; set update.launcher to deepspeed or srun"
    gpus = visible_gpus()
    if launch.launcher != "deepspeed" or hostfile(launch) or not gpus:
        return None
    if launch.num_processes > len(gpus):
        return f"{where}: processes, each with a GPU, and this one may use {counted(len(gpus), 'GPU')}; lower it"
    if not all(gpu.isdecimal() for gpu in gpus):
        return (
            f"{where}: DeepSpeed's launcher takes GPUs by number, and CUDA_VISIBLE_DEVICES names {gpus[0]}; use numbers"
        )
    return None


def gpus_words(launch: UpdateLaunch) -> list[str]:
    """How DeepSpeed's launcher is told which GPUs to use: left to itself it takes the machine's first ones."""
    if hostfile(launch) or "CUDA_VISIBLE_DEVICES" not in os.environ or not (gpus := visible_gpus()):
        return ["--num_gpus", str(launch.num_processes)]
    return ["--include", f"localhost:{','.join(gpus[: launch.num_processes])}"]


def words_problem(launch: UpdateLaunch) -> str | None:
    """Words of DeepSpeed's launcher that say again, otherwise, what num_processes says."""
    names = ("-i", "--include", "-e", "--exclude", "--num_gpus")
    for word in launch.launcher_args if launch.launcher == "deepspeed" else ():
        if (name := word.partition("=")[0]) in names:
            return (
                f"launch.yaml: update.launcher_args: {name}: update.num_processes says how many GPUs of each host are "
                "used; remove it, and name them by CUDA_VISIBLE_DEVICES, or hosts in the file of --hostfile"
            )
    return None


def allocation_problem(launch: UpdateLaunch) -> str | None:
    """srun needs an allocation of SLURM's around `dvc repro`."""
    if launch.launcher == "srun" and "SLURM_JOB_NODELIST" not in os.environ:
        return "launch.yaml: update.launcher: srun: no SLURM allocation; start `dvc repro` in sbatch or salloc"
    return None


def program_problem(launch: UpdateLaunch) -> str | None:
    """The launcher is a program, and not installed here."""
    if launch.launcher != "in_process" and not shutil.which(launch.launcher):
        return f"launch.yaml: update.launcher: {launch.launcher}: `{launch.launcher}` is not on this machine's PATH"
    return None


def hosts_problem(launch: UpdateLaunch) -> str | None:
    """The file of hosts (--hostfile FILE, --hostfile=FILE or -H FILE), whose lines are such as `node1 slots=8`."""
    path = hostfile(launch)
    if launch.launcher != "deepspeed" or path is None:
        return None
    if not path.is_file():
        return f"launch.yaml: update.launcher_args: --hostfile {path}: no such file; its lines are such as {HOST}"
    for number, line in enumerate(_lines(path), 1):
        if line and not _LINE.fullmatch(line):
            return f"launch.yaml: update.launcher_args: {path}:{number}: {line!r}: not a line such as {HOST}"
    slots = _slots(path)
    if (most := _argument(launch, "--num_nodes") or "").isdecimal():
        slots = dict(list(slots.items())[: int(most)])
    if not slots:
        return f"launch.yaml: update.launcher_args: {path}: names no host; its lines are such as {HOST}"
    fewest = min(slots, key=lambda host: slots[host])
    if launch.num_processes > slots[fewest]:
        return (
            f"launch.yaml: update.num_processes: {launch.num_processes}: processes a host, but {fewest} has "
            f"{slots[fewest]} slots in {path}; lower it"
        )
    own = any(word.startswith("--launcher") for word in launch.launcher_args)
    if len(slots) > 1 and not own and not shutil.which("pdsh"):
        return (
            f"launch.yaml: update.launcher_args: {len(slots)} hosts, and `pdsh`, by which DeepSpeed reaches them, is "
            "not on the PATH; install it"
        )
    return None


def unreached_problem(launch: UpdateLaunch) -> str | None:
    """A host that ssh does not reach without a password: each is asked, for 10 s at most."""
    path = hostfile(launch)
    others = _argument(launch, "--no_ssh", "--no_ssh_check", "--num_nodes")
    if launch.launcher != "deepspeed" or path is None or others is not None:
        return None
    port = _argument(launch, "--ssh_port")
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *(["-p", port] if port else [])]
    asked = {host: [*words, host, "true"] for host in _slots(path)}
    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(asked, pool.map(_answer, asked.values()), strict=True))
    for host, said in answers.items():
        if said is not None:
            return (
                f"launch.yaml: update.launcher_args: {path}: {host}: ssh does not reach it ({said}); "
                f"`{shlex.join(asked[host])}` must end well without a password"
            )
    return None


def _answer(command: list[str]) -> str | None:
    """The last line of a command that fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = ["", *done.stderr.strip().splitlines()][-1]
    return (said or f"exit code {done.returncode}") if done.returncode else None


def _lines(path: Path) -> list[str]:
    return [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]


def _slots(path: Path) -> dict[str, int]:
    """The hosts of a file, and how many processes each takes."""
    found = filter(None, map(_LINE.fullmatch, _lines(path)))
    return {each[1]: int(each[2]) for each in found}


def hostfile(launch: UpdateLaunch) -> Path | None:
    value = _argument(launch, "--hostfile", "-H")
    return None if value is None else Path(value)


def _argument(launch: UpdateLaunch, *names: str) -> str | None:
    """What follows a word of launcher_args, or its equals sign."""
    for word, after in pairwise([*launch.launcher_args, ""]):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else after
    return None


PROBLEMS = (processes_problem, words_problem, allocation_problem, program_problem, hosts_problem, unreached_problem)
"""In the order in which they are looked for."""
