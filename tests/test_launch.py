"""launch.yaml: rounds go on when it changes, a rank that fails ends the stage, what cannot be started is one line."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mini
import pytest
from safetensors.torch import load_file
from torch import Tensor

from gift.doctor.whole import read_params
from gift.training.launcher import gpus_words, hosts_problem, processes_problem, unreached_problem, words_problem
from gift.training.settings import UpdateLaunch
from gift.training.steps import learning_rate


def launch(
    folder: Path, settings: dict[str, Any], arguments: list[str] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run update@r1 (or Python with other arguments) under a launch.yaml with these settings of `update`."""
    (folder / "launch.yaml").write_text(json.dumps({"update": settings}), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, *(arguments or mini.command(folder, "update@r1"))]
    environment = {**mini.environment(), "PATH": path, **env}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def same_steps(one: Path, two: Path) -> list[dict[str, str]]:
    """The steps of a round in `one`, where they must be those of `two` but for rounding."""
    rows = [
        list(csv.DictReader((folder / "metrics" / "steps.csv").read_text(encoding="utf-8").splitlines()))
        for folder in (one, two)
    ]
    assert len(rows[0]) == len(rows[1]) >= 3
    for ours, theirs in zip(*rows, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["learning_rate"] == theirs["learning_rate"]
        for name in ("loss", "grad_norm", "kl", "num_tokens"):
            assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=1e-3, abs=1e-6), name
    return rows[0]


def gap(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


ROUND = ("generate@{}", "score@{}", "reference@{}", "update@{}")


@pytest.mark.slow
def test_rounds_go_on_when_processes_stage_and_offload_change(copied: Path, tmp_path: Path) -> None:
    """Three rounds on one process; and r1 so, r2 on two ranks of ZeRO 3, r3 on one process of ZeRO 1 with offload.

    r2 also has gradient checkpointing, small micro-batches and a key of DeepSpeed's.

    A large eps: else Adam makes whole steps of rounding where a gradient is 0, and a sampled token may be another.
    """
    schedule = {"lr": 3e-3, "warmup_steps": 2, "lr_schedule": "cosine", "schedule_steps": 50, "min_lr_ratio": 0.1}
    mini.write_params(copied, {"update": {"eps": 1e-2, **schedule}})
    r2, r3 = ([name.format(key) for name in ROUND] for key in ("r2", "r3"))
    mini.run_stages(copied, r2[:-1])
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    mini.run_stages(copied, [r2[-1], *r3])
    settings = {
        "launcher": "deepspeed",
        "num_processes": 2,
        "zero_stage": 3,
        "gradient_checkpointing": True,
        "tokens_per_batch": 128,
        "deepspeed": {"zero_optimization": {"overlap_comm": False}},
    }
    done = launch(other, settings, mini.command(other, "update@r2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("update@r2: num steps"), done.stdout  # and nothing of the libraries
    (other / "launch.yaml").write_text(json.dumps({"update": {"zero_stage": 1, "offload_optimizer": True}}))
    mini.run_stages(other, r3)

    start = load_file(copied / "data" / "rounds" / "base" / "policy" / "model.safetensors")
    rates = []
    for key in ("r2", "r3"):
        alone, changed = (folder / "data" / "rounds" / key for folder in (copied, other))
        steps = same_steps(alone, changed)
        rates += [float(step["learning_rate"]) for step in steps]
        assert gap(start, load_file(alone / "policy" / "model.safetensors")) > 1e-3
        for file in ("policy/model.safetensors", "optimizer/state.safetensors"):
            assert gap(load_file(alone / file), load_file(changed / file)) < 1e-5
    first = int(steps[0]["step"]) - len(rates) + len(steps)  # of r2, counted over all rounds
    update = read_params(copied / "params.yaml").update
    assert rates == [learning_rate(first + index, update) for index in range(len(rates))]
    assert first > update.warmup_steps


MISFORTUNE = """
import os, time
from pathlib import Path
import click
import torch
from gift.project import console
from gift.training.deepspeed_config import EngineSettings
from gift.project.errors import UserError
from gift.training.engine import Engine
from gift.training.ranks import distributed
from gift.doctor.whole import read_launch

Path("pid" + os.environ["RANK"]).write_text(str(os.getpid()))

@click.command()
@click.argument("fate")
def main(fate):
    console.quiet()
    launch = read_launch().update
    with distributed(launch.timeout_minutes):
        engine = Engine(torch.nn.Linear(4, 4), EngineSettings(zero_stage=launch.zero_stage))
        engine.backward(engine.forward(torch.ones(2, 4)).sum())
        if engine.rank == 1:
            if fate == "raises":
                raise UserError("the trouble of rank 1")
            if fate == "is killed":
                os.kill(os.getpid(), 9)
            if fate == "loses another":
                raise torch.distributed.DistBackendError("NCCL error in: ..., ncclRemoteError: A call failed ...")
            time.sleep(600)
        engine.step(0.1)
        engine.tensor("weight", "weight")

console.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "stage", "message"),
    [
        ("raises", 3, "error: the trouble of rank 1"),
        ("is killed", 1, "error: stages.update: a process was ended by signal 9, most often for want of memory"),
        ("loses another", 0, "error: rank 1: another rank ended; its own message says why"),
        ("hangs", 0, "error: rank 0: waited 0.05 minutes for another rank, which may hang or be busy"),
    ],
)
def test_a_rank_that_fails_ends_the_others(tmp_path: Path, fate: str, stage: int, message: str) -> None:
    """Between backward and step, so that another rank waits for it in a collective."""
    folder = mini.make_project(tmp_path)
    (folder / "stages/update.py").write_text(MISFORTUNE)
    minutes = 0.05 if fate == "hangs" else 2.0
    settings = {"launcher": "deepspeed", "num_processes": 2, "zero_stage": stage, "timeout_minutes": minutes}
    start = time.monotonic()
    done = launch(folder, settings, ["-m", "gift.launch", "stages.update", fate])
    assert done.returncode not in (0, None)
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 100
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / f"pid{rank}").read_text()), 0)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (250, "a process was ended by signal 6, on GPUs most often by NCCL"),  # from DeepSpeed's launcher
        (134, "a process was ended by signal 6, on GPUs most often by NCCL"),  # from srun
        (137, "a process was ended by signal 9, most often for want of memory"),
        (255, None),  # what ssh says of itself
        (143, "a process was ended by signal 15\n"),
    ],
)
def test_the_end_of_a_rank_by_a_signal_is_explained(tmp_path: Path, status: int, message: str | None) -> None:
    (tmp_path / "deepspeed").write_text(f"#!/bin/bash\nexit {status}\n")
    (tmp_path / "deepspeed").chmod(0o755)
    (tmp_path / "launch.yaml").write_text('{"update": {"launcher": "deepspeed"}}')
    environment = {**mini.environment(), "PYTHONPATH": str(mini.ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "gift.launch", "stages.update"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert f"error: stages.update: {message}" in done.stderr if message else "signal" not in done.stderr


def test_a_launcher_is_for_the_update_alone(tmp_path: Path) -> None:
    (tmp_path / "launch.yaml").write_text('{"update": {"launcher": "deepspeed"}}')
    environment = {**mini.environment(), "PYTHONPATH": str(mini.ROOT), "PATH": "/nowhere"}
    for stage, code in (("score", 0), ("update", 1)):
        command = [sys.executable, "-m", "gift.launch", f"stages.{stage}", "--help"]
        assert (
            subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode == code
        )


SRUN = """#!/bin/bash
echo "$@" > arguments
shift 3
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_STEP_NUM_TASKS=2 "$@" & tasks[$rank]=$!
done
wait ${tasks[0]} && wait ${tasks[1]}
"""
GREETING = """
from pathlib import Path
import torch
from gift.training.ranks import distributed

with distributed():
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    rank = torch.distributed.get_rank()
Path(f"rank{rank}").write_text(str(int(total)))
"""


def test_srun_starts_ranks_that_meet_and_lets_the_last_one_finish(tmp_path: Path) -> None:
    folder = mini.make_project(tmp_path)
    (folder / "stages/update.py").write_text(GREETING)
    for name, script in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    command = [sys.executable, "-m", "gift.launch", "stages.update"]
    (folder / "launch.yaml").write_text('{"update": {"launcher": "srun", "num_processes": 2}}')
    environment = {**mini.environment(), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(os.getpid())}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(folder / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    arguments = (folder / "arguments").read_text().split()
    assert arguments[:3] == ["--ntasks=2", "--kill-on-bad-exit=1", "--wait=0"]


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "one process means one": ({"num_processes": 2}, "update.num_processes: 2: in_process runs one"),
    "no allocation": ({"launcher": "srun"}, "update.launcher: srun: no SLURM allocation"),
    "no such program": ({"launcher": "deepspeed"}, "`deepspeed` is not on this machine's PATH"),
    "a key of DeepSpeed's, misspelt": (
        {"deepspeed": {"zero_optimization": {"overlap_com": True}}},
        "update.deepspeed.zero_optimization.overlap_com: does not pass",
    ),
    "misspelt": ({"zero_stag": 2}, "update.zero_stag: unknown key; did you mean 'zero_stage'?"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_started_is_one_line(copied: Path, name: str) -> None:
    settings, message = CASES[name]
    before = mini.content(copied / "data")
    done = launch(copied, settings, PATH="/nowhere")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("deepspeed ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: launch.yaml: ")
    assert message in errors[0]
    assert mini.content(copied / "data") == before


SSH = """#!/bin/sh
case "$*" in *node2*) echo "ssh: connect to host node2 port 22: Connection refused" >&2; exit 255;; esac
"""


@pytest.mark.parametrize(
    ("visible", "number", "words"),
    [
        (None, 2, ["--num_gpus", "2"]),
        ("2,3", 2, ["--include", "localhost:2,3"]),
        ("3,1", 1, ["--include", "localhost:3"]),
        ("2,3", 3, "this one may use 2 GPUs; lower it"),
        ("GPU-1f3a,GPU-2b", 2, "CUDA_VISIBLE_DEVICES names GPU-1f3a; use numbers"),
    ],
)
def test_deepspeeds_launcher_is_told_which_gpus_it_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int, words: list[str] | str
) -> None:
    """On a machine of four. It deletes the variable where it is told a number alone, and takes the first ones."""
    gpus = visible.split(",") if visible else list("0123")
    monkeypatch.setattr("gift.training.launcher.visible_gpus", lambda: gpus)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launch = UpdateLaunch(launcher="deepspeed", num_processes=number)
    if isinstance(words, str):
        assert words in (processes_problem(launch) or "")
        return
    assert processes_problem(launch) is None
    assert gpus_words(launch) == words
    if visible:
        from deepspeed.launcher.runner import parse_inclusion_exclusion

        (found,) = parse_inclusion_exclusion({"localhost": 4}, words[1], "").values()
        assert sorted(found) == sorted(int(gpu) for gpu in gpus[:number])


@pytest.mark.parametrize("word", ["--include=node1", "-e", "--num_gpus"])
def test_words_that_say_again_how_many_gpus_are_refused(word: str) -> None:
    said = words_problem(UpdateLaunch(launcher="deepspeed", num_processes=2, launcher_args=[word, "node1"]))
    assert said is not None
    assert said.startswith(f"launch.yaml: update.launcher_args: {word.partition('=')[0]}: update.num_processes says")


def test_hosts_that_are_not_used_need_no_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=1\n")
    monkeypatch.setenv("PATH", "/nowhere")  # no pdsh
    arguments = ["--hostfile", str(tmp_path / "hosts"), "--num_nodes"]
    for number, problem in (("1", None), ("2", "but node2 has 1 slots")):
        launch = UpdateLaunch(launcher="deepspeed", num_processes=8, launcher_args=[*arguments, number])
        said = hosts_problem(launch)
        assert said is None if problem is None else problem in (said or "")


@pytest.mark.parametrize(
    "hosts", ["node1 slots=2\nnode2 slots=2\n", "node2 slots=2\n", "node1 slots=2\nnode3 slots=2\n"]
)
def test_a_host_that_ssh_does_not_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hosts").write_text(hosts)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    arguments = ["--hostfile", str(tmp_path / "hosts"), "--ssh_port=2222"]
    said = unreached_problem(UpdateLaunch(launcher="deepspeed", num_processes=2, launcher_args=arguments))
    if "node2" in hosts:
        assert said is not None
        assert "node2: ssh does not reach it (ssh: connect to host node2 port 22: Connection refused)" in said
        assert "-p 2222 node2 true` must end well without a password" in said
    else:
        assert said is None
    skipped = UpdateLaunch(launcher="deepspeed", num_processes=2, launcher_args=[*arguments, "--no_ssh_check"])
    assert unreached_problem(skipped) is None


def test_another_launch_file_is_read_where_the_environment_names_it(tmp_path: Path) -> None:
    script = "from gift.project.params import read_launch; from gift.training.settings import UpdateLaunch; "
    command = [sys.executable, "-c", script + "print(read_launch('update', UpdateLaunch).tokens_per_batch)"]
    (tmp_path / "launch.yaml").write_text("update: {tokens_per_batch: 1}")
    (tmp_path / "other.yaml").write_text("update: {tokens_per_batch: 2}")
    for name, found in (("launch.yaml", "1\n"), ("other.yaml", "2\n"), ("none.yaml", "")):
        env = {**mini.environment(), "PYTHONPATH": str(mini.ROOT), "GIFT_LAUNCH": name}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.stdout == found
    assert "none.yaml: no such file; GIFT_LAUNCH in the environment names it" in done.stderr
