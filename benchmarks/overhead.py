"""Where the wall time of a round goes: imports, engine starts, loading, compute, hashing, files, and DVC itself."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import Run, measured
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import ROOT, make_model, shape_of
from gift.project.yaml import read_yaml
from gift.workers.preload import FORKED, modules_for, preloaded

CASES = ("embedded", "preloaded", "kept", "hundred")
"""The second is the first as `gift repro` runs it on a CPU with `keep_engine: false`, the third as it runs it there."""
SERVED = {"preloaded": None, "kept": "any"}
COMPUTE = ("sampling", "log-probs", "optimizer steps")
ORDER = (
    *COMPUTE,
    "rewards and their workers",
    "start of Python",
    "imports",
    "engine start",
    "models and tokenizers",
    "hashing",
    "tables, policies and states",
    "check of the saved policy",
    "rest of the stages",
    "end of Python",
    "DVC",
)
# Before and after each stage's Python, as DVC starts it.
SCRIPT = """\
export STAGE_BEGUN=$(date +%s.%N)
if [ -n "$GIFT_PRELOADED" ]; then
    python -c "$FORK" "$@" || exit
else
    python timed_stage.py "$@" || exit
fi
date +%s.%N >> "$STAGE_TIMES.ends"
"""
FORK = 'import sys; from gift.workers.served import run; sys.exit(run(["timed_stage", *sys.argv[1:]]))'
# The model of random weights is never right, so its groups are told apart by a reward of no meaning.
REWARD = '''"""A reward of no meaning, so that a model of random weights has groups to train on."""


def parity(prompts, completions, completion_ids, **columns):
    return [float(sum(ids) % 2) for ids in completion_ids]
'''
HUNDRED: dict[str, Any] = {
    "prepare": {"num_eval": 32},
    "generate": {"prompts_per_round": 32, "group_size": 8, "max_tokens": 64},
    "score": {"rewards": {"answer": {"function": "rewards/parity.py:parity"}}},
    "evaluate": {"num_samples": 1, "max_tokens": 64},
}
QUICK: dict[str, Any] = {
    "prepare": {"num_train": 64, "num_eval": 8},
    "generate": {"prompts_per_round": 8, "group_size": 4, "max_tokens": 8},
    "update": {"groups_per_step": 4},
    "evaluate": {"num_samples": 1, "max_tokens": 8},
}


@measured(dtypes=False)
@click.option("--case", "cases", multiple=True, type=click.Choice(CASES), help="Without it: all.")
@click.option(
    "--rounds", default=3, show_default=True, help="Rounds of the embedded task; of the 100M model, one less."
)
def main(run: Run, cases: tuple[str, ...], rounds: int) -> None:
    """Real rounds under real DVC in a copy of the project, with the stages' functions timed from outside."""
    rounds = 1 if run.quick else rounds
    found = {}
    for name in cases or CASES:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "project")
            parameters = make_project(folder, Path(work, "model"), "embedded" if name in SERVED else name, run.quick)
            count = max(1, rounds - (name == "hundred"))
            content = "".join(f"  r{n}: {{from: {f'r{n - 1}' if n > 1 else 'base'}}}\n" for n in range(1, count + 1))
            (folder / "rounds.yaml").write_text("rounds:\n" + content, encoding="utf-8")
            say(f"{name}: what comes before the rounds")
            repro(folder, "evaluate_base")
            if name in SERVED:
                with served(folder, name) as env:
                    mean, once = mean_of_a_run(folder, count, env)
                each = [mean]
            else:
                each, once = [one_round(folder, f"r{number}") for number in range(1, count + 1)], None
            say(f"{name}: rounds of {', '.join(format(one['wall'], '.3g') for one in each)} s")
            nothing = repro(folder, f"evaluate@r{count}")
        found[name] = {
            "parameters": parameters,
            "nothing_to_do": nothing,
            "once": once,
            "medians": {part: statistics.median(r["seconds"].get(part, 0.0) for r in each) for part in ORDER},
            "rounds": each,
        }
    finish("overhead", {**run.settings, "rounds": rounds}, {"cases": found}, table, run.out)


def copy_project(folder: Path) -> None:
    """The files of the project that git keeps, without its data, benchmarks and tests."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in filter(None, listed.stdout.split("\0")):
        if path.split("/")[0] not in ("data", "dvc.lock", "benchmarks", "tests"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)


def make_project(folder: Path, model: Path, name: str, quick: bool) -> int:
    """A copy of the project that times its stages, with the shipped task or a model of 100M parameters."""
    copy_project(folder)
    shutil.copyfile(Path(__file__).with_name("timed_stage.py"), folder / "timed_stage.py")
    (folder / "timed.sh").write_text(SCRIPT, encoding="utf-8")
    graph = folder / "dvc.yaml"
    graph.write_text(graph.read_text(encoding="utf-8").replace("python -m ", "sh timed.sh "), encoding="utf-8")
    params = read_yaml(folder / "params.yaml")
    model.mkdir()
    parameters = fresh(make_model, shape_of(name, quick), model)
    if name == "hundred" or quick:  # else the pipeline trains its own, as shipped
        (folder / "rewards/parity.py").write_text(REWARD, encoding="utf-8")
        changes = HUNDRED if name == "hundred" else {"score": HUNDRED["score"]}
        params["base"]["model"] = str(model)
        for section, keys in (*changes.items(), *(QUICK.items() if quick else ())):
            params[section].update(keys)
    (folder / "params.yaml").write_text(json.dumps(params, indent=1), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return parameters


@contextmanager
def served(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """The environment of rounds, with a server that has libraries, and keeps engines, where that is the case."""
    env = environment(folder)
    if name not in SERVED:
        yield env
        return
    modules = modules_for([f"{kind}@r1" for kind in FORKED], read_yaml(folder / "params.yaml"), True)
    with chdir(folder), preloaded(modules, env, SERVED[name]) as own:
        time.sleep(30)  # as long as what comes before the first round takes
        yield own


def one_round(folder: Path, name: str) -> dict[str, Any]:
    """Seconds of a round that is made by a run of its own."""
    stages, wall = timed_run(folder, [name], environment(folder))
    return of_stages(stages, wall)


def mean_of_a_run(folder: Path, count: int, env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """Seconds of a round, the mean of those that one run makes; and what the run takes besides.

    DVC may take stages of one round between those of another, so that there is no wall time of each.
    """
    stages, wall = timed_run(folder, [f"r{number}" for number in range(1, count + 1)], env)
    own = [stage for stage in stages if stage["stage"] != "code"]
    span = own[-1]["begun"] + own[-1]["wall"] - own[0]["begun"]
    total = of_stages(own, span)
    seconds = {part: value / count for part, value in total["seconds"].items()}
    return {"wall": span / count, "seconds": seconds, "stages": own}, wall - span


def timed_run(folder: Path, rounds: list[str], env: dict[str, str]) -> tuple[list[dict[str, Any]], float]:
    """The stages that `dvc repro` of rounds ran, in their order, and its wall time."""
    times = folder / "times"
    for path in (times, Path(f"{times}.ends")):
        path.unlink(missing_ok=True)
    wall = repro(folder, *(f"evaluate@{name}" for name in rounds), env=env)
    stages = [json.loads(line) for line in times.read_text(encoding="utf-8").splitlines()]
    ends = [float(line) for line in Path(f"{times}.ends").read_text().split()]
    for stage, end in zip(stages, ends, strict=True):
        stage["seconds"]["end of Python"] = end - stage["ended"]
        stage["wall"] = end - stage["begun"]
    return stages, wall


def of_stages(stages: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Seconds by what took them; DVC's are those outside its stages."""
    seconds: dict[str, float] = {}
    for stage in stages:
        for part, value in stage["seconds"].items():
            seconds[part] = seconds.get(part, 0.0) + value
    seconds["DVC"] = wall - sum(stage["wall"] for stage in stages)
    return {"wall": wall, "seconds": seconds, "stages": stages}


def environment(folder: Path) -> dict[str, str]:
    """Of a run with nothing of this machine's DVC."""
    home = folder.parent
    places = {f"DVC_{name}_DIR": str(home / name.lower()) for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")}
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **places,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STAGE_TIMES": str(folder / "times"),
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "FORK": FORK,
    }


def repro(folder: Path, *targets: str, env: dict[str, str] | None = None) -> float:
    """`dvc repro` of stages and what they need; returns its wall time."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *targets]
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=env or environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"dvc repro {' '.join(targets)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - begin


def table(result: dict[str, Any]) -> str:
    """Seconds and share of each part of a round, the median of the rounds; then the share that is not compute."""
    cases = result["cases"]
    header, rows, lines = ["part"], [], []
    for name, case in cases.items():
        header += [f"{name}, {case['parameters'] / 1e6:.3g}M, s", "share"]
    totals = {name: sum(case["medians"].values()) for name, case in cases.items()}
    for part in ORDER:
        row = [part]
        for name, case in cases.items():
            row += [f"{case['medians'][part]:.2f}", f"{case['medians'][part] / totals[name]:.1%}"]
        rows.append(row)
    for name, case in cases.items():
        once = f"; a run takes {case['once']:.1f} s besides" if case.get("once") else ""
        compute = sum(case["medians"][part] for part in COMPUTE) / totals[name]
        lines.append(
            f"\n{name}: a round of {totals[name]:.1f} s, of which {(1 - compute) * totals[name]:.1f} s "
            f"({1 - compute:.0%}) are not {' or '.join(COMPUTE)}{once}; "
            f"`dvc repro` with nothing to do: {case['nothing_to_do']:.1f} s."
        )
    return "\n".join([markdown(header, rows), *lines])


if __name__ == "__main__":
    main()
