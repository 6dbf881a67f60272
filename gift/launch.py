"""launch.yaml: how this machine runs the stages; and the starter of `update` on one process, many, or a cluster."""

import os
import runpy
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gift.params import Packing, Positive
from gift.project.errors import UserError
from gift.project.sections import Count, Section, check
from gift.project.yaml import read_yaml

# What a rank's end by a signal most often means.
SIGNALS = {
    6: ", on GPUs most often by NCCL, which ends a rank that lost another or waited longer than update.timeout_minutes "
    "for it: look at what the other ranks said",
    9: ", most often for want of memory: raise update.zero_stage, or offload",
}


class GenerateLaunch(Section):
    """The sampler's machine: vLLM's words."""

    tensor_parallel_size: Count = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    kv_cache_gib: Annotated[int, Field(ge=1, description="KV cache on a CPU, in GiB")] = 1
    max_num_seqs: Count = 256
    enforce_eager: bool | None = Field(None, description="null: true on a CPU, false on a GPU")


class ScoreLaunch(Section):
    """The workers of rewards, and where the judge answers."""

    workers: Count = 2
    judge_endpoint: str | None = Field(None, description="e.g. http://127.0.0.1:8000/v1")


class ReferenceLaunch(Section):
    tokens_per_batch: Count = 16384
    packing: Packing = "auto"


class UpdateLaunch(Section):
    """The trainer's machine. Results are the same for every choice here, up to float rounding."""

    launcher: Literal["in_process", "deepspeed", "srun"] = "in_process"
    num_processes: Count = 1
    launcher_args: list[str] = Field(default_factory=list, description="e.g. ['--hostfile', 'hosts']")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(None, description="null: 0 with float32, 1 with bfloat16")
    tokens_per_batch: Count = 16384
    packing: Packing = Field("auto", description="shared prompts, packed or padded rows; auto: shared where it can")
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    checkpoint_every_steps: Count = 8
    timeout_minutes: Positive = Field(30.0, description="how long a rank waits for another before it ends")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="further keys of DeepSpeed's configuration")


class Launch(Section):
    generate: GenerateLaunch = GenerateLaunch()
    score: ScoreLaunch = ScoreLaunch()
    reference: ReferenceLaunch = ReferenceLaunch()
    update: UpdateLaunch = UpdateLaunch()


def read_launch(path: Path = Path("launch.yaml")) -> Launch:
    """launch.yaml as a typed object; without the file, one process on this machine."""
    if not path.exists():
        return Launch()
    return check(Launch, read_yaml(path), str(path))


def refuse_launch(launch: UpdateLaunch) -> None:
    """Raise `UserError` where the launcher cannot start so many processes."""
    if launch.launcher == "in_process" and launch.num_processes != 1:
        raise UserError(
            f"launch.yaml: update.num_processes: {launch.num_processes}: in_process runs one; set update.launcher to "
            "deepspeed or srun"
        )


def main(arguments: list[str]) -> None:
    """`python -m gift.launch <module> ...`: run the stage as launch.yaml says; its exit code is ours."""
    module, rest = arguments[0], arguments[1:]
    try:
        launch = read_launch().update
        refuse_launch(launch)
    except UserError as error:
        error.show()
        sys.exit(1)
    if launch.launcher == "in_process":
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    if launch.launcher == "deepspeed":
        level = "info" if os.environ.get("GIFT_VERBOSE") == "1" else "error"
        starter = ["deepspeed", "--no_local_rank", "--log_level", level, "--num_gpus", str(launch.num_processes)]
        if not {"--hostfile", "-H", "--master_port"} & {word.split("=")[0] for word in launch.launcher_args}:
            starter += ["--master_port", str(_free_port())]  # DeepSpeed's own is one number for all runs of a machine
        command = [*starter, *launch.launcher_args, "--module", module, *rest]
        devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]
        environment = {} if devices else {"DS_ACCELERATOR": "cpu"}  # else DeepSpeed warns that it finds no other
    else:
        # Rank 0 saves when the others have ended: no site's default may end it for that.
        starter = [
            "srun",
            f"--ntasks={launch.num_processes}",
            "--kill-on-bad-exit=1",
            "--wait=0",
            *launch.launcher_args,
        ]
        command = [*starter, sys.executable, "-m", module, *rest]
        environment = _srun_environment()
    print(shlex.join(command), file=sys.stderr)
    try:
        done = subprocess.run(command, check=False, env={**os.environ, **environment})
    except FileNotFoundError:
        UserError(
            f"launch.yaml: update.launcher: {launch.launcher}: `{command[0]}` is not on this machine's PATH"
        ).show()
        sys.exit(1)
    if done.returncode > 128:  # -9 from DeepSpeed's launcher is 247, from srun 137
        number = 256 - done.returncode if done.returncode > 192 else done.returncode - 128
        UserError(f"{module}: a process was ended by signal {number}{SIGNALS.get(number, '')}").show()
    sys.exit(done.returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _srun_environment() -> dict[str, str]:
    """Where the ranks meet: the allocation's first host, and a port of the job's own."""
    if "SLURM_JOB_NODELIST" not in os.environ:
        UserError(
            "launch.yaml: update.launcher: srun: no SLURM allocation; start `dvc repro` in sbatch or salloc"
        ).show()
        sys.exit(1)
    show = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(show, capture_output=True, text=True, check=True)
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    return {"MASTER_ADDR": hosts.stdout.split()[0], "MASTER_PORT": str(port)}


if __name__ == "__main__":
    main(sys.argv[1:])
