"""What keeps `update` from starting on this machine as launch.yaml says."""

import os
import shutil

from gift.training.settings import UpdateLaunch


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
