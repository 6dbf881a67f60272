"""Kills: signals to a stage, DVC, make or all of them, at random moments and at file operations; one run mends each.

A trial takes a small finished project, makes one stage of it stale, kills its run, and runs it again: that must end
well, with the same bytes, and leave nothing behind.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.measure import say
from benchmarks.overhead import copy_project
from benchmarks.results import finish, markdown, start
from gift.project.graph import read_graph
from gift.project.yaml import blocks_of, read_yaml

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TARGETS = ("stage", "dvc", "make", "group")
AIMS = ("moment", "operation of the stage", "operation of dvc", "publishing", "dvc.lock", "rwlock")
OF_WORKERS = ("moment", "operation of the stage", "publishing", "operation of a worker")
BY_WORKERS = ("generate_eval_base", "generate@r1", "score@r1", "reference@r1", "generate_eval@r1", "evaluate@r1")
SAMPLED = ("generate_eval_base", "generate@r1", "generate_eval@r1")
STAGES = (
    *("prepare", "base", "generate_eval_base", "overrides@r1", "generate@r1", "score@r1", "reference@r1"),
    *("update@r1", "generate_eval@r1", "evaluate@r1", "report"),
)
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (STAGES, AIMS),
    "local": (BY_WORKERS, OF_WORKERS),  # two workers
    "srun": (BY_WORKERS, OF_WORKERS),  # two tasks, made up, with a worker each
    "ray": (BY_WORKERS, OF_WORKERS),  # two actors
    "shards": (("update@r1",), AIMS),  # of policy and state
    "engine": ((" ".join(SAMPLED),), OF_WORKERS),  # vLLM stays from one to the next
    "preload": (STAGES, ("moment",)),  # the file operations of forks are not heard of
}
"""How the stages run: which of them are made stale (one; or several, in a text), and what is aimed at."""
SHARD_BYTES = 100_000
TINY = Path(__file__).with_name("tiny.yaml")
HOOK = Path(__file__).with_name("killed")
# What two undisturbed runs differ in too: times (the page shows them), DVC's own notes, what is kept for the next look.
OTHERWISE = ("data/made", "data/.cache", "data/report/report.html", ".dvc/tmp", ".dvc/cache/runs")
LEFT = 15.0  # seconds after which a process that still works here is left over


@dataclass(frozen=True)
class Trial:
    """A kill: of what, when and how."""

    seed: int
    stage: str
    target: str
    signal: str
    aim: str
    findings: tuple[str, ...] = ()


@click.command()
@click.option("--trials", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the first trial; the others count on from it.")
@click.option("--stage", "stages", multiple=True, help="Only these; without it all that make something.")
@click.option("--ranks", default=1, show_default=True, help="Processes of update.")
@click.option(
    "--by", multiple=True, default=["plain"], type=click.Choice(list(WAYS)), help="How stages run; each in turn."
)
@click.option("--threads", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Three trials: does it run? Kept with --out alone.")
@click.option("--out", type=Path, help="Result file; without it one in benchmarks/results.")
def main(
    trials: int,
    seed: int,
    stages: tuple[str, ...],
    ranks: int,
    by: tuple[str, ...],
    threads: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Trials with a finding, by what was killed and when."""
    trials = 3 if quick else trials
    settings = start(threads, quick, trials=trials, seed=seed, ranks=ranks, by=list(by))
    found = []
    for way in by:
        own, aims = WAYS[way]
        with tempfile.TemporaryDirectory() as work:
            whole = Path(work, "whole")
            make_project(whole, ranks, way)
            took = run_whole(whole, stages or own)
            for number in range(seed, seed + trials):
                trial = one_trial(number, whole, Path(work, "trial"), stages or own, aims, took)
                found.append({"by": way, **asdict(trial)})
                said = "; ".join(trial.findings) or "as undisturbed"
                say(f"{way} {number}: {trial.signal} to {trial.target} of {trial.stage}, {trial.aim}: {said}")
    finish("kills" if by == ("plain",) else "kills_by", settings, {"trials": found}, table, out)
    if any(trial["findings"] for trial in found):
        raise SystemExit(1)


def copy_tiny(folder: Path, engine: str = "transformers") -> None:
    """The project with settings that take seconds."""
    copy_project(folder)
    params = read_yaml(folder / "params.yaml")
    for section, keys in read_yaml(TINY).items():
        params[section].update(keys)
    params["update"]["warmup_steps"] = 1  # of eight, which the doctor looks at
    for section in ("generate", "evaluate"):
        params[section]["engine"] = engine
    (folder / "params.yaml").write_text(json.dumps(params, indent=1), encoding="utf-8")


def make_project(folder: Path, ranks: int = 1, way: str = "plain") -> None:
    """A tiny project under git and DVC."""
    copy_tiny(folder, "vllm" if way == "engine" else "transformers")
    if way == "shards":
        path = folder / "gift/training/saving/shards.py"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("SHARD_BYTES = 4 * 10**9", f"SHARD_BYTES = {SHARD_BYTES}"), encoding="utf-8")
    (folder / "rounds.yaml").write_text("rounds:\n  r1: {from: base}\n", encoding="utf-8")
    many = {"launcher": "deepspeed", "num_processes": ranks} if ranks > 1 else {}
    launch = {
        "score": {"workers": 1},
        "update": {"checkpoint_every_steps": 1, **many},
        "repro": {"ask_from_minutes": 1e6, "preload": way == "preload", "keep_engine": way == "engine"},
    }
    if way in ("local", "srun", "ray"):
        each = 1 if way == "srun" else 2  # of each of its two tasks
        launch |= {"workers": {"kind": way, "listen": "127.0.0.1:0" if way == "srun" else None}}
        launch |= {"generate": {"engines": each}, "reference": {"processes": each}}
        launch["score"]["processes"] = each
    (folder / "launch.yaml").write_text(json.dumps(launch), encoding="utf-8")
    shutil.rmtree(folder / "data", ignore_errors=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a project"]):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *command], cwd=folder, check=True)


def environment(folder: Path, kill: dict[str, Any] | None = None) -> dict[str, str]:
    """The project's own code; `kill` as in killed/sitecustomize.py."""
    path = os.pathsep.join([str(HOOK), str(folder)])
    own = {
        "PYTHONPATH": path,
        "DVC_NO_ANALYTICS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(HOOK), os.environ["PATH"]]),
        "SLURM_JOB_NODELIST": "here",
    }
    return {**os.environ, **own, **({"GIFT_KILL": json.dumps(kill)} if kill else {})}


def repro(folder: Path, kill: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
    """`gift repro` under make, in a session of its own."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "Makefile.kills").write_text(f"repro:\n\t@{sys.executable} -m gift.cli repro\n", encoding="utf-8")
    command, env = ["make", "-f", "Makefile.kills", "repro"], environment(folder, kill)
    with (folder / "data/.cache.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)


def run_whole(folder: Path, stages: tuple[str, ...]) -> dict[str, float]:
    """Make all of a project; returns the seconds of a run that makes one of these stages again."""
    if repro(folder).wait():
        raise click.ClickException(
            f"{folder}: did not run undisturbed:\n{(folder / 'data/.cache.log').read_text()[-3000:]}"
        )
    took = {}
    for name in stages:
        trial = folder.with_name("timed")
        stale(folder, trial, name)
        begin = time.monotonic()
        if repro(trial).wait():
            raise click.ClickException(f"{name}: did not run again:\n{(trial / 'data/.cache.log').read_text()[-3000:]}")
        took[name] = time.monotonic() - begin
        if left := differences(folder, trial):
            raise click.ClickException(f"{name}: an undisturbed run differs: {left}")
    return took


def stale(whole: Path, folder: Path, name: str) -> None:
    """A copy of a finished project in which some stages have never run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)
    lock = folder / "dvc.lock"
    text = lock.read_text(encoding="utf-8")
    blocks = blocks_of(text) or {}
    for each in name.split():
        text = text.replace(blocks[each], "")
    lock.write_text(text, encoding="utf-8")
    with inside(folder):
        graph = read_graph()
        outs = [out for each in name.split() for out in graph[each].outs]
    for path in (folder / out for out in outs):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def inside(folder: Path) -> Any:
    from contextlib import chdir

    return chdir(folder)


def one_trial(
    seed: int, whole: Path, folder: Path, stages: tuple[str, ...], aims: tuple[str, ...], took: dict[str, float]
) -> Trial:
    """Kill one run and look at the next."""
    draw = random.Random(seed)
    stage, target, number, aim = draw.choice(stages), draw.choice(TARGETS), draw.choice(SIGNALS), draw.choice(aims)
    stale(whole, folder, stage)
    kill = None
    if aim != "moment":
        target = "dvc" if aim in ("operation of dvc", "dvc.lock", "rwlock") else "stage"
        target = "worker" if aim == "operation of a worker" else target
        name = {"dvc.lock": "dvc.lock", "rwlock": "rwlock", "publishing": "data/rounds"}.get(aim, "")
        at = draw.randint(1, {"dvc.lock": 3, "rwlock": 40, "publishing": 4}.get(aim, 60))
        delay = draw.choice([0.0, draw.uniform(0, 0.03)])
        who = "dvc" if target == "dvc" else stage.split()[0 if target == "worker" else -1]
        kill = {"who": who, "at": at, "name": name, "signal": number, "delay": delay}
        if target == "worker":
            kill |= {"worker": str(folder / "data/.cache.worker"), "at": draw.randint(1, 12), "name": ""}
    run = repro(folder, kill)
    with suppress(subprocess.TimeoutExpired):
        run.wait(draw.uniform(0.0, took[stage]) if kill is None else 10 * took[stage] + 60)
    if kill is None and run.poll() is None:
        send(target, number, run, folder)
    with suppress(subprocess.TimeoutExpired):
        run.wait(LEFT)
    findings = [*left_over(folder)]
    with suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    if code := repro(folder).wait():
        last = (folder / "data/.cache.log").read_text(errors="replace").strip().splitlines()[-1]
        findings.append(f"the next run ended with {code}: {last}")
    findings += differences(whole, folder)
    return Trial(seed, stage, target, signal.Signals(number).name, aim, tuple(findings))


def send(target: str, number: int, run: subprocess.Popen[bytes], folder: Path) -> None:
    """The signal to make, to DVC, to the stage's own process, or to the whole group, as a terminal sends it."""
    if target == "group":
        with suppress(ProcessLookupError):
            os.killpg(run.pid, number)
        return
    for process in working(folder):
        with suppress(psutil.Error):
            words = process.cmdline()
            kinds = {"make": words[0] == "make", "dvc": "gift.upkeep.dvc" in words}
            kinds["stage"] = any(word.startswith("stages.") for word in words)
            if kinds[target]:
                process.send_signal(number)
                return


def working(folder: Path) -> Iterator[psutil.Process]:
    """The processes that work in a folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                yield process


def left_over(folder: Path) -> Iterator[str]:
    """What still works there when its run has ended; it is ended."""
    begin = time.monotonic()
    while (processes := list(working(folder))) and time.monotonic() - begin < LEFT:
        time.sleep(0.2)
    for process in processes:
        with suppress(psutil.Error):
            yield f"left over: {' '.join(process.cmdline())[:80]}"
            process.kill()


def differences(whole: Path, folder: Path) -> list[str]:
    """Files of a project that are not as in the undisturbed one."""
    one, other = content(whole), content(folder)
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return [
        f"{name}: {'left behind' if name not in one else 'missing' if name not in other else 'other bytes'}"
        for name in names
    ]


def content(folder: Path) -> dict[str, Any]:
    """Name and content of every file that two runs have in common; of dvc.lock what it says."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (
            not path.is_file()
            or name.startswith((*OTHERWISE, ".git/"))
            or "__pycache__" in name
            or name in ("data/.cache.log", "data/.cache.worker")
        ):
            continue
        found[name] = json.dumps(read_yaml(path), sort_keys=True) if name == "dvc.lock" else path.read_bytes()
    return found


def table(result: dict[str, Any]) -> str:
    """A row for each way and aim: trials, and those with a finding."""
    rows = []
    ways = dict.fromkeys(each.get("by", "plain") for each in result["trials"])
    for way in ways:
        own = [each for each in result["trials"] if each.get("by", "plain") == way]
        for aim in dict.fromkeys((*AIMS, *OF_WORKERS)):
            trials = [each for each in own if each["aim"] == aim]
            bad = [each for each in trials if each["findings"]]
            named = "; ".join(finding for each in bad[:3] for finding in each["findings"])
            first = [] if list(ways) == ["plain"] else [way]
            rows += [[*first, aim, len(trials), len(bad), named]] if trials else []
    header = ["killed at", "trials", "with a finding", "which"]
    return markdown(header if list(ways) == ["plain"] else ["stages run", *header], rows)


if __name__ == "__main__":
    main()
