"""What keeps `update` from starting on this machine as launch.yaml says."""

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

from gift.training.settings import UpdateLaunch

HOST = "`node1 slots=8`"


def processes_problem(launch: UpdateLaunch) -> str | None:
    """The launcher does not start so many processes."""
    if launch.launcher == "in_process" and launch.num_processes != 1:
        return (
            f"launch.yaml: update.num_processes: {launch.num_processes}: in_process runs one; set update.launcher to "
            "deepspeed or srun"
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
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        found = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if text and not found:
            return f"launch.yaml: update.launcher_args: {path}:{number}: {text!r}: not a line such as {HOST}"
        slots |= {found[1]: int(found[2])} if found else {}
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


def hostfile(launch: UpdateLaunch) -> Path | None:
    for word, after in pairwise([*launch.launcher_args, ""]):
        name, equals, value = word.partition("=")
        if name in ("--hostfile", "-H"):
            return Path(value if equals else after)
    return None
