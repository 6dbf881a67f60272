"""Starts a stage as launch.yaml says: in this process, in several by DeepSpeed's launcher, or on a cluster by srun."""

import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gift.project.console import end_with_parent, interruptible
from gift.workers.served import run

if TYPE_CHECKING:
    from gift.training.settings import UpdateLaunch

MANY = ("stages.update",)
"""The stages that can run as several processes; launch.yaml says how."""

# What a rank's end by a signal most often means.
SIGNALS = {
    6: ", on GPUs most often by NCCL, which ends a rank that lost another or waited longer than update.timeout_minutes "
    "for it: look at what the other ranks said",
    9: ", most often for want of memory: raise update.zero_stage, or offload",
}


def main(arguments: list[str]) -> None:
    """`python -m gift.launch <module> ...`: run the stage as launch.yaml says; its exit code is ours."""
    from gift.project.errors import UserError
    from gift.project.params import read_launch
    from gift.project.work import publish_again
    from gift.training import launcher
    from gift.training.settings import UpdateLaunch

    module, rest = arguments[0], arguments[1:]
    try:
        if finished := publish_again():
            print(f"{finished}: was finished before it was stopped; its outputs are in their places again")
            return
        launch = read_launch("update", UpdateLaunch) if module in MANY else UpdateLaunch()
        for problem_of in launcher.PROBLEMS:
            if problem := problem_of(launch):
                raise UserError(problem)
    except UserError as error:
        error.show()
        sys.exit(1)
    if launch.launcher == "in_process":
        _here(module, rest)
    else:
        _by_launcher(launch, module, rest)


def _here(module: str, rest: list[str]) -> None:
    from gift.project.errors import refused

    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception as error:  # before the stage runs: its libraries do not load where there is no memory
        if (line := refused(error)) is None:
            raise
        line.show()
        sys.exit(1)


def _by_launcher(launch: "UpdateLaunch", module: str, rest: list[str]) -> None:
    """Start the ranks, by DeepSpeed's launcher or srun, and end with them."""
    from gift.project.errors import UserError
    from gift.training.launcher import gpus_words

    if launch.launcher == "deepspeed":
        level = "info" if os.environ.get("GIFT_VERBOSE") == "1" else "error"
        starter = ["deepspeed", "--no_local_rank", "--log_level", level, *gpus_words(launch)]
        if not {"--hostfile", "-H", "--master_port"} & {word.split("=")[0] for word in launch.launcher_args}:
            starter += ["--master_port", str(_free_port())]  # DeepSpeed's own is one number for all runs of a machine
        command = [*starter, *launch.launcher_args, "--module", module, *rest]
        devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]
        environment = {} if devices else {"DS_ACCELERATOR": "cpu"}  # else DeepSpeed warns that it finds no other
    else:
        # Rank 0 saves when the others have ended: no site's default may end it for that.
        starter = ["srun", f"--ntasks={launch.num_processes}", "--kill-on-bad-exit=1", "--wait=0"]
        command = [*starter, *launch.launcher_args, sys.executable, "-m", module, *rest]
        environment = _srun_environment()
    print(shlex.join(command), file=sys.stderr)
    end_with_parent()
    around = {**os.environ, **environment}
    if "--include" in starter:  # names them; DeepSpeed would say that it ignores the variable
        around.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, check=False, env=around, preexec_fn=end_with_parent)
    if 128 < done.returncode < 255:  # -9 from DeepSpeed's launcher is 247, from srun 137; 255 is ssh's own failure
        number = 256 - done.returncode if done.returncode > 192 else done.returncode - 128
        UserError(f"{module}: a process was ended by signal {number}{SIGNALS.get(number, '')}").show()
    sys.exit(done.returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _srun_environment() -> dict[str, str]:
    """Where the ranks meet: the allocation's first host, and a port of the job's own."""
    show = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(show, capture_output=True, text=True, check=True)
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    return {"MASTER_ADDR": hosts.stdout.split()[0], "MASTER_PORT": str(port)}


if __name__ == "__main__":
    parent = os.getppid()
    end_with_parent()
    if (code := run(["gift.launch", *sys.argv[1:]])) is not None:
        sys.exit(code)
    if os.getppid() != parent:  # no stage goes on without its DVC
        sys.exit(128 + signal.SIGTERM)
    with interruptible():  # also while torch is imported, or the ranks work
        main(sys.argv[1:])
