"""What a project of 100 finished rounds costs beside its work: `make repro` with nothing to do, and one more round."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import click

from benchmarks.kills import copy_tiny
from benchmarks.measure import say
from benchmarks.results import finish, markdown, met, start
from gift.project.graph import Stage, read_graph
from gift.project.params import overrides_text
from gift.project.rounds import read_rounds

NOTHING_GOAL, ROUND_GOAL = 5.0, 10.0
HISTORY = json.dumps({"round": {"round": 0}, "steps": []})
# In place of the stages that make the base and the rounds: all of their bookkeeping, and outputs of a line each.
STUB = """
import os, runpy, sys
module, *words = sys.argv[1:]
stage = words.pop(0) if module == "gift.launch" else module
if stage in ("stages.code", "stages.doctor", "stages.overrides", "stages.report", "stages.prepare", "stages.base"):
    sys.argv = [stage, *words]
    runpy.run_module(stage, run_name="__main__", alter_sys=True)
from pathlib import Path
from gift.project import door
from gift.project.graph import read_graph
from gift.project.work import Work
door.enter()
address = os.environ["DVC_STAGE"]
work = Work(address, {})
moves = {}
for number, out in enumerate(read_graph(only=address)[address].outs):
    path = work.folder / str(number)
    if not Path(out).suffix:
        path.mkdir()
    own = os.environ["HISTORY"] if "history" in out else address
    (path if Path(out).suffix else path / "part").write_text(own)
    moves[path] = Path(out)
work.publish(moves)
"""


@click.command()
@click.option("--rounds", "counts", default="4,40,100", show_default=True, help="Finished rounds.")
@click.option("--threads", default=0, help="Threads of every process; 0 is one a core.")
@click.option("--quick", is_flag=True, help="Two rounds: does it run? Kept with --out alone.")
@click.option("--out", type=Path, help="Result file; without it one in benchmarks/results.")
def main(counts: str, threads: int, quick: bool, out: Path | None) -> None:
    """Seconds of a run with nothing to do and of one more round, whose stages write a line each."""
    numbers = [2] if quick else [int(each) for each in counts.split(",")]
    settings = start(threads, quick, rounds=numbers)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for number in numbers:
            folder = Path(work, str(number))
            make_project(folder, number)
            found[str(number)] = measure(folder, number)
            say(f"{number} rounds: {found[str(number)]}")
    finish("bookkeeping", settings, {"projects": found}, table, out)


def measure(folder: Path, number: int) -> dict[str, float]:
    found: dict[str, float] = {"lock_lines": (folder / "dvc.lock").read_text().count("\n")}
    run(folder, "-m", "gift.cli", "repro")  # once, so that all is known that is kept for the next time
    found["nothing"] = timed(folder, "-m", "gift.cli", "repro")
    found["nothing_dvc"] = timed(folder, "-m", "dvc", "repro")
    write_rounds(folder, number + 1)
    found["round"] = timed(folder, "-m", "gift.cli", "repro")
    write_rounds(folder, number + 2)
    found["round_dvc"] = timed(folder, "-m", "dvc", "repro")
    return found


def timed(folder: Path, *words: str) -> float:
    begin = time.perf_counter()
    run(folder, *words)
    return round(time.perf_counter() - begin, 2)


def run(folder: Path, *words: str) -> None:
    """A command of this environment in the project."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PYTHONPATH": str(folder), "PATH": path, "DVC_NO_ANALYTICS": "1", "GIFT_AGAIN": "1", "HISTORY": HISTORY}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{folder}: {' '.join(words)}:\n{(done.stdout + done.stderr)[-3000:]}")


def write_rounds(folder: Path, number: int) -> None:
    lines = "".join(f"  r{n}: {{from: {f'r{n - 1}' if n > 1 else 'base'}}}\n" for n in range(1, number + 1))
    (folder / "rounds.yaml").write_text(f"rounds:\n{lines}", encoding="utf-8")


def make_project(folder: Path, number: int) -> None:
    """A project with so many rounds whose outputs are a line each; prompts and base are real."""
    copy_tiny(folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    write_rounds(folder, 1)
    (folder / "stub.py").write_text(STUB, encoding="utf-8")
    graph = folder / "dvc.yaml"
    graph.write_text(graph.read_text(encoding="utf-8").replace("python -m ", "python stub.py "), encoding="utf-8")
    run(folder, "-m", "dvc", "repro", "base", "prepare", "code", "doctor", "check_rewards")
    write_rounds(folder, number)
    with chdir(folder):
        for stage in read_graph().values():
            write_outs(stage)
    run(folder, "-m", "gift.upkeep.dvc", "commit", "-f", "-q", "dvc.yaml")


def write_outs(stage: Stage) -> None:
    """What the stub would write, where nothing is."""
    rounds = read_rounds()
    for out in map(Path, stage.outs):
        if out.exists():
            continue
        path = out if out.suffix else out / "part"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = overrides_text(rounds[stage.round], out.stem) if stage.name == "overrides" else stage.address
        path.write_text(HISTORY if "history" in out.parts else own)


def table(result: dict[str, Any]) -> str:
    """A row a project: lines of dvc.lock, and seconds of both with `make repro` and with `dvc repro` by itself."""
    projects = sorted(result["projects"].items(), key=lambda each: int(each[0]))
    rows = [
        [
            number,
            int(each["lock_lines"]),
            *(f"{each[key]:.3g}" for key in ("nothing", "round", "nothing_dvc", "round_dvc")),
        ]
        for number, each in projects
    ]
    head = [
        "finished rounds",
        "lines of dvc.lock",
        "nothing to do, s",
        "one more round, s",
        "`dvc repro`: nothing, s",
        "round, s",
    ]
    _, last = projects[-1]
    goals = f"\nGoals: {NOTHING_GOAL:g} s with nothing to do, {met(last['nothing'], NOTHING_GOAL, at_most=True)}; "
    goals += f"{ROUND_GOAL:g} s of a round, {met(last['round'], ROUND_GOAL, at_most=True)}."
    return markdown(head, rows) + "\n" + goals


if __name__ == "__main__":
    main()
