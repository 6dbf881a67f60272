"""`gift compare`: the stages of compare/dvc.yaml through DVC, several at a time where they do not need each other."""

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from gift.compare.plan import Plan, read_plan
from gift.project.errors import UserError
from gift.upkeep.command import dvc, environment

FOLDER = Path("compare")
PLAN, REPORT = FOLDER / "compare.yaml", FOLDER / "data" / "report"


def phases(plan: Plan) -> list[list[str]]:
    """The stages by name; those of one phase need only phases before it."""
    sweep = [f"sweep@{name}-{lr}-{seed}" for seed in plan.sweep.seeds for name in plan.run for lr in plan.sweep.lrs]
    choose = [f"choose@{name}" for name in plan.run]
    runs = [f"run@{name}-{seed}" for seed in plan.seeds for name in plan.run]
    runs += [f"run_more@{name}-{seed}" for seed in plan.more.seeds for name in plan.more.run]
    runs += [f"run_fixed@{name}-{seed}" for seed in plan.fixed.seeds for name in plan.fixed.run]
    return [["start", "methods"], sweep, choose, runs, ["report"]]


def run_all(jobs: int, say: Callable[[str], None]) -> None:
    """Bring the comparison up to date; what a stage says in the end is said. DVC skips what has run already."""
    plan = read_plan(PLAN)
    first, *others = phases(plan)
    counts = f"{len(others[0])} runs of the sweep, {len(others[2])} runs that are reported"
    say(f"{PLAN}: {len(plan.names)} methods, {counts}")
    _repro(first, [], say)
    for names in others:
        shares = [names[start::jobs] for start in range(min(jobs, len(names)))]
        failed: list[UserError] = []

        def work(share: Sequence[str], failed: list[UserError] = failed) -> None:
            try:
                _repro(share, ["--single-item", "--keep-going"], say)
            except UserError as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


def _repro(names: Sequence[str], options: Sequence[str], say: Callable[[str], None]) -> None:
    """By the DVC that writes dvc.lock whole: a stage of one run reads it while another run's is noted."""
    targets = [f"{FOLDER / 'dvc.yaml'}:{name}" for name in names]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = subprocess.Popen(
        dvc("repro", *options, *targets),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env=environment() | threads,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith(("compare_", "error", "ERROR")):
            say(line.rstrip())
    if process.wait():
        raise UserError(f"{FOLDER / 'dvc.yaml'}: a stage failed (above); what has run is kept: `gift compare` goes on")
