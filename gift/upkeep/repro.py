"""`gift repro`: `dvc repro` after a look at what would stop it in riddles, and with an end that says how to go on."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

from gift.project.console import GOES_ON, end_with_parent
from gift.project.errors import UserError, amount
from gift.project.machine import visible_gpus
from gift.project.params import LAUNCH, PARAMS, read_launch
from gift.project.rounds import read_rounds
from gift.project.work import forget_noted
from gift.project.yaml import read_yaml
from gift.upkeep.command import ONLY, dvc, environment
from gift.upkeep.guard import LOOKED, VARIABLE
from gift.upkeep.heal import heal, running
from gift.upkeep.look import dvc_cache
from gift.upkeep.prune import ALLOW_MISSING, PULL, pruned
from gift.upkeep.settings import ReproLaunch
from gift.workers.preload import kept_in, modules_for, preloaded

FULL = 16 << 20
"""Bytes free on a disk below which DVC, which says nothing of it in plain words, stops for want of room."""


def repro(arguments: Sequence[str], stages_of_run: Callable[[Sequence[str]], list[str] | None]) -> int:
    """Run DVC to its end; returns its exit code. A signal that ends this process ends DVC and its stage, too.

    `stages_of_run` names the stages that DVC will find to be made; it then reads no others (gift/upkeep/dvc.py).
    """
    check_files()
    wait_for_others()
    forget_noted()
    for line in heal(dvc_cache()):
        click.echo(line, err=True)
    end_with_parent()
    if PULL in arguments and (code := make_first()):
        return code
    stages = stages_of_run(arguments)
    if stages == []:
        click.echo("every stage is as dvc.lock has it: nothing to do")
        return 0
    env, words = environment(), list(arguments)
    if stages:  # these are all of what DVC then knows
        env |= {LOOKED: str(os.getpid()), ONLY: json.dumps(stages)}
        words = [word for word in words if word.startswith("-")]
    with served(stages, env) as own:
        code, ended_by = run_dvc(words, arguments, own)
    forget_noted()
    if ended_by:
        click.echo(GOES_ON, err=True)
        return 128 + ended_by[0]
    if code > 0 and (free := shutil.disk_usage(Path.cwd()).free) < FULL:
        click.echo(
            f"error: {amount(free)} free on the project's disk; make room, and `make repro` goes on from here", err=True
        )
    if code < 0:
        click.echo(f"DVC was ended by signal {-code}; `make repro` goes on from here", err=True)
    return code if code >= 0 else 128 - code


@contextmanager
def served(stages: list[str] | None, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a run, with a server that has libraries and engines in memory where that saves time."""
    launch, on_gpu = read_launch("repro", ReproLaunch), bool(visible_gpus())
    wanted = not on_gpu if launch.preload is None else launch.preload
    update = (read_yaml(LAUNCH) if LAUNCH.exists() else {}).get("update")
    in_process = not isinstance(update, dict) or update.get("launcher", "in_process") == "in_process"
    modules = modules_for(stages or [], read_yaml(PARAMS), in_process) if wanted else []
    keep = kept_in(stages or [], launch.keep_engine, on_gpu)
    if not modules and not keep:
        yield env
        return
    with preloaded(modules, env, keep) as own:
        yield own


def run_dvc(words: list[str], arguments: Sequence[str], env: dict[str, str]) -> tuple[int, list[int]]:
    """DVC to its end: its exit code, and the signal that this process was ended by, if it was."""
    missing = [ALLOW_MISSING] if (pruned() or PULL in arguments) and ALLOW_MISSING not in arguments else []
    child = psutil.Popen(dvc("repro", *missing, *words), env=env, preexec_fn=end_with_parent)
    ended_by: list[int] = []

    def end(number: int, _: object) -> None:
        """End the stage first, so that DVC can put its files in order; without one DVC itself."""
        ended_by.append(number)
        for each in child.children(recursive=True) or [child]:
            each.send_signal(signal.SIGTERM if each != child else signal.SIGINT)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    code = child.wait()
    for number in numbers:
        signal.signal(number, before[number])
    return code, ended_by


def make_first() -> int:
    """What no remote has, and DVC does not make where it may be missing: the base policy, and what the checks say."""
    subprocess.run(dvc("pull", "prepare"), env=environment(), preexec_fn=end_with_parent, check=False)
    return make_base("check_rewards")


def make_base(*others: str) -> int:
    """The base policy, unasked: it has to be made, and is no work done twice. Returns DVC's exit code."""
    env = {**environment(), VARIABLE: "1"}
    return subprocess.run(dvc("repro", *others, "base"), env=env, preexec_fn=end_with_parent, check=False).returncode


def check_files() -> None:
    """What DVC would stop at in words of its own: settings that are no YAML, rounds that break a law."""
    for problem in dvc_problems():
        raise UserError(problem)
    read_rounds()
    read_yaml(PARAMS)
    if LAUNCH.exists():
        read_yaml(LAUNCH)


def dvc_problems() -> Iterator[str]:
    """What keeps DVC from working in this folder at all, where it speaks of an unexpected error."""
    if problem := linked_data():
        yield problem
    if above(".git") is None:
        yield "no git repository; run `git init` in the project's folder"
    own = above(".dvc")
    if own is None:
        yield "no .dvc folder; run `dvc init` in the project's folder, or clone it whole"
    elif not os.access(own, os.W_OK):
        yield f"{own}: cannot be written, and DVC keeps its locks there; let this user write there, or move the project"


def above(name: str) -> Path | None:
    """What has this name in the working folder or in one above it; the nearest."""
    paths = (folder / name for folder in (Path.cwd(), *Path.cwd().parents))
    return next((path for path in paths if path.exists()), None)


def linked_data() -> str | None:
    """DVC refuses outputs that lie outside of the project, and names none of these."""
    for path in (Path("data"), Path("data/rounds")):
        if path.is_symlink():
            return (
                f"{path}: a link to {path.resolve()}, and DVC keeps nothing outside of the project; move what is there "
                "back, and let the cache lie on the other disk: `dvc cache dir --local FOLDER`, then "
                "`dvc config --local cache.type symlink`"
            )
    return None


def wait_for_others() -> None:
    """Wait until no other DVC command works in this project: DVC itself stops at once."""
    said = False
    while others := running():
        if not said:
            (pid, command), *_ = others.items()
            click.echo(f"waiting for process {pid}, which works here: {command}", err=True)
            said = True
        time.sleep(1)
