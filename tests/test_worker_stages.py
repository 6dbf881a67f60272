"""The stages by workers: bytes of one process, for local workers, srun, Ray and two hosts, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosts
import mini
import psutil
import pytest
from judge_server import free_port

from gift.workers.preload import LIBRARIES, VLLM, preloaded

IN_PARTS = ("generate@r1", "score@r1", "reference@r1", "generate_eval@r1", "evaluate@r1")


def by(number: int, **workers: Any) -> dict[str, Any]:
    """A launch.yaml with so many workers of each stage."""
    own = {"generate": {"engines": number}, "reference": {"processes": number}}
    return {**own, "score": {"workers": 1, "processes": number}, "workers": workers}


def start(
    folder: Path, address: str, launch: dict[str, Any], env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A stage under a launch.yaml, its outputs removed before, as DVC does."""
    (folder / "launch.yaml").write_text(json.dumps(launch), encoding="utf-8")
    mini.remove_outputs(folder, address)
    command = [sys.executable, *mini.command(folder, address)]
    if env and "PREFIX" in env:
        command = hosts.on_first(env, command)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**mini.environment(), **(env or {})}, **streams)


def run(folder: Path, address: str, launch: dict[str, Any], env: dict[str, str] | None = None) -> str:
    stage = start(folder, address, launch, env)
    said, _ = stage.communicate()
    assert stage.returncode == 0, said
    return said


def made(folder: Path) -> dict[str, Any]:
    """What a round is, without what says who made it and when."""
    return {name: value for name, value in mini.content(folder / "data/rounds/r1").items() if "/policy/" not in name}


def at_work(folder: Path, address: str) -> list[int]:
    """The workers that have a part."""
    scratch = folder / "data/.cache/workers" / address
    return [int(path.name.partition(".")[2]) for path in scratch.glob("[0-9]*.*")]


def hands_of(stage: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers of a stage, wherever they are below it."""
    below = psutil.Process(stage.pid).children(recursive=True)
    return [each for each in below if "gift.worker" in each.cmdline()]


def kill_one_at_work(stage: subprocess.Popen[str], folder: Path, address: str) -> None:
    """As soon as a worker has a part."""
    while not (pids := at_work(folder, address)):
        time.sleep(0.01)
        assert stage.poll() is None
    os.kill(pids[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_any_number_of_workers_makes_the_bytes_of_one_process(copied: Path, number: int) -> None:
    before = made(copied)
    for address in IN_PARTS:
        run(copied, address, by(number))
    assert made(copied) == before


@pytest.mark.slow
@pytest.mark.parametrize("address", ["generate@r1", "reference@r1"])
def test_a_worker_that_is_killed_costs_no_byte(copied: Path, address: str) -> None:
    before = made(copied)
    stage = start(copied, address, by(2))
    kill_one_at_work(stage, copied, address)
    said, _ = stage.communicate()
    assert stage.returncode == 0, said
    assert made(copied) == before
    assert "it goes to another" in said


@pytest.mark.slow
def test_a_stage_that_is_killed_goes_on_with_other_workers(copied: Path) -> None:
    """Its owner dies in the middle, with finished parts: they stay, the rest is made by one more worker than before."""
    before = made(copied)
    stage = start(copied, "generate@r1", by(2))
    parts = copied / "data/.work/generate@r1/rollouts"
    while not list(parts.glob("*.parquet")):
        time.sleep(0.02)
    hands = hands_of(stage)
    stage.kill()
    stage.communicate()
    assert not psutil.wait_procs(hands, 10)[1]
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert "were finished before; going on" in run(copied, "generate@r1", by(3))
    assert made(copied) == before
    assert kept


@pytest.mark.slow
def test_passes_that_read_rewards_are_sampled_by_workers_too(copied: Path) -> None:
    mini.write_params(copied, {"generate": {"sample": {"dynamic": {"batch": 6}}, "groups_per_part": 2}})
    run(copied, "generate@r1", {"score": {"workers": 1}})
    before = made(copied)
    run(copied, "generate@r1", by(2))
    assert made(copied) == before


@pytest.mark.slow
def test_passes_and_their_rewards_take_turns_where_both_listen_at_one_port(copied: Path) -> None:
    """`score` runs below `generate`, with workers of its own."""
    mini.write_params(copied, {"generate": {"sample": {"dynamic": {"batch": 6}}, "groups_per_part": 2}})
    run(copied, "generate@r1", {"score": {"workers": 1}})
    before = made(copied)
    run(copied, "generate@r1", by(1, listen=f"127.0.0.1:{free_port()}"))
    assert made(copied) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_engines_of_vllm_give_the_bytes_of_one(copied: Path) -> None:
    mini.write_params(copied, {"generate": {"engine": "vllm"}})
    run(copied, "generate@r1", {})
    before = made(copied)
    stage = start(copied, "generate@r1", by(2))
    said, _ = stage.communicate()
    assert stage.returncode == 0, said
    assert made(copied) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "modules"), [(1, [*LIBRARIES, *VLLM]), (2, [*LIBRARIES, *VLLM]), (1, [])])
def test_engines_that_stay_between_stages_give_the_bytes_of_those_that_start(
    copied: Path, number: int, modules: list[str]
) -> None:
    mini.write_params(copied, {"generate": {"engine": "vllm"}, "evaluate": {"engine": "vllm"}})
    addresses = ("generate_eval_base", "generate@r1", "generate_eval@r1")
    for address in addresses:
        run(copied, address, {})
    before = mini.content(copied / "data/rounds")
    with preloaded(modules, mini.environment(), "any") as env:
        time.sleep(1)  # until it is one by its name
        (server,) = [each for each in psutil.Process().children() if "gift.workers.server" in each.cmdline()]
        kept = []
        for address in addresses:
            said = run(copied, address, by(number), env)
            assert "not used" not in said
            kept.append({each.pid for each in server.children()})
    assert mini.content(copied / "data/rounds") == before
    assert kept[0]
    assert kept[0] <= kept[1] <= kept[2], "who had not loaded when a stage ended does not stay; who stays goes on"
    assert len(kept[2]) <= number


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """An allocation of one host, whose `srun` runs two tasks here."""
    programs = folder / "slurm"
    programs.mkdir()
    script = hosts.SRUN.replace("ip netns exec $PREFIX$host unshare --uts sh -c 'hostname $0; exec \"$@\"' $host", "")
    (programs / "srun").write_text(script)
    (programs / "srun").chmod(0o755)
    yield {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "here",
        "SRUN_SAID": str(programs / "said"),
    }


@pytest.mark.slow
def test_workers_of_srun_make_the_bytes_of_one_process(copied: Path, tmp_path: Path) -> None:
    before = made(copied)
    with slurm(tmp_path) as env:
        for address in IN_PARTS[:3]:
            said = run(copied, address, by(1, kind="srun", listen="127.0.0.1:0", args=["--nodes=2"]), env)
            assert "1 worker for" in said
    assert made(copied) == before
    assert (tmp_path / "slurm/said").read_text().split()[:2] == ["--ntasks-per-node=1", "--kill-on-bad-exit=0"]


@pytest.mark.slow
def test_a_worker_of_srun_that_is_killed_costs_no_byte(copied: Path, tmp_path: Path) -> None:
    before = made(copied)
    with slurm(tmp_path) as env:
        stage = start(copied, "generate@r1", by(1, kind="srun", listen="127.0.0.1:0"), env)
        kill_one_at_work(stage, copied, "generate@r1")
        said, _ = stage.communicate()
    assert stage.returncode == 0, said
    assert made(copied) == before


@pytest.mark.slow
def test_srun_that_ends_early_ends_the_stage(copied: Path, tmp_path: Path) -> None:
    with slurm(tmp_path) as env:
        (tmp_path / "slurm/srun").write_text("#!/bin/sh\necho 'srun: error: no nodes' >&2; exit 1\n")
        stage = start(copied, "generate@r1", by(1, kind="srun", listen="127.0.0.1:0"), env)
        said, _ = stage.communicate()
    assert stage.returncode == 1
    assert "error: generate@r1: srun ended before all parts were made (exit code 1; above is why)" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hosts_sample_compute_log_probs_and_train(copied: Path, tmp_path: Path) -> None:
    """Each with a network and a name of its own; the bytes are those of one, and the update differs by rounding."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    before = made(copied)
    launch = by(1, kind="srun", listen=f"{hosts.ADDRESSES[0]}:0")
    launch["update"] = {"launcher": "srun", "num_processes": 2, "zero_stage": 2}
    with hosts.two_hosts(tmp_path) as env:
        said = [run(copied, address, launch, env) for address in ("generate@r1", "score@r1", "reference@r1")]
        tables = made(copied)
        assert {name: value for name, value in tables.items() if "optimizer" not in name} == {
            name: value for name, value in before.items() if "optimizer" not in name
        }
        assert all(f"at {hosts.ADDRESSES[0]}:" in each for each in said)
        losses = [json.loads((copied / "data/rounds/r1/metrics/update.json").read_text())["loss"]]
        run(copied, "update@r1", launch, env)
        losses.append(json.loads((copied / "data/rounds/r1/metrics/update.json").read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_on_two_nodes_makes_the_bytes_of_one_process_though_one_is_lost(copied: Path) -> None:
    """A cluster of two raylets; while both have parts, one is killed: its part is made on what is left."""
    import ray
    from ray.cluster_utils import Cluster

    before = made(copied)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    env = {"PYTHONPATH": str(copied), "RAY_ADDRESS": cluster.address, "PATH": os.environ["PATH"]}
    try:
        launch = by(2, kind="ray", address="auto")
        run(copied, "generate@r1", launch, env)
        assert made(copied) == before
        stage = start(copied, "generate@r1", launch, env)
        held: set[int] = set()
        while len(held) < 2:  # each is held at its part, until the other has one too
            for pid in {*at_work(copied, "generate@r1")} - held:
                os.kill(pid, signal.SIGSTOP)
                held.add(pid)
            time.sleep(0.01)
            assert stage.poll() is None, stage.communicate()[0]
        cluster.remove_node(second, allow_graceful=False)
        assert len(psutil.wait_procs([psutil.Process(pid) for pid in held], 30)[1]) == 1, "one node's worker ended"
        for pid in filter(psutil.pid_exists, held):
            os.kill(pid, signal.SIGCONT)
        said, _ = stage.communicate()
        assert "died at part" in said, said
        assert stage.returncode == 0, said
        assert made(copied) == before
    finally:
        cluster.shutdown()
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["well", "killed"])
def test_nothing_is_left_of_a_ray_that_a_stage_started(copied: Path, ended: str) -> None:
    """Two agents of Ray's would stay for a minute after a kill."""
    before = made(copied)
    stage = start(copied, "score@r1", by(2, kind="ray"), {"PYTHONPATH": str(copied)})
    while not at_work(copied, "score@r1"):
        time.sleep(0.01)
        assert stage.poll() is None, stage.communicate()[0]
    below = psutil.Process(stage.pid).children(recursive=True)
    assert {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= {each.cmdline()[0].strip() for each in below}
    if ended == "killed":
        stage.kill()
    said, _ = stage.communicate()
    assert not psutil.wait_procs(below, 10)[1]
    if ended == "well":
        assert stage.returncode == 0, said
        assert made(copied) == before
