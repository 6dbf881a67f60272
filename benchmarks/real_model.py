"""A real model learns chats that code can judge: GIFT against GRPO and DPO over seeds, by the project's own stages."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import say
from benchmarks.overhead import copy_project
from benchmarks.real_tasks import TASKS, write_chats
from benchmarks.real_weights import WORK, real_weights
from benchmarks.results import finish, markdown, start, versions
from benchmarks.shapes import ROOT
from gift.compare.plan import laid_over
from gift.compare.presets import read_preset
from gift.project.work import write_json
from gift.project.yaml import read_yaml

REWARDS = Path(__file__).parent / "real_project/rewards/chats.py"
PRESETS = ROOT / "presets/methods"
METHODS = tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))
BEFORE = ("code", "doctor", "prepare", "check_rewards", "base", "generate_eval_base", "evaluate_base")
ROUND = ("overrides", "generate", "score", "reference", "update", "generate_eval", "evaluate")
QUICK = {"prompts": 8, "group_size": 4, "num_eval": 8, "max_tokens": 16}
SHOWN = {"eval/avg@4": "avg@4", "eval/accuracy_greedy": "greedy"}
KEPT = (
    *(f"{name}{end}" for name in (*SHOWN, "eval/pass@4") for end in ("", "_se")),
    *(f"eval/{task}/avg@4" for task in TASKS),
    *("eval/mean_length", "reward", "kl", "log_ratio_std", "completions/mean_length"),
    "sampling/sampling_logp_difference/mean",
)


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="gift, grpo and dpo without it.")
@click.option("--seeds", default=3, show_default=True, help="Seeds 0, 1, ...")
@click.option("--rounds", default=4, show_default=True, help="Rounds of a run; more of them go on from those made.")
@click.option("--prompts", default=48, show_default=True, help="Prompts of a round.")
@click.option("--group-size", default=8, show_default=True)
@click.option("--max-tokens", default=48, show_default=True, help="Of a completion, and of an answer.")
@click.option("--num-eval", default=96, show_default=True, help="Held-out prompts.")
@click.option("--lr", default=1e-5, show_default=True, help="The same for all methods.")
@click.option("--minutes", type=float, help="Begin no round after so many; the next call goes on.")
@click.option("--work", type=Path, default=WORK, help="Keeps the model and the runs.")
@click.option("--threads", default=0, help="Threads of every process; 0 is one a core.")
@click.option("--quick", is_flag=True, help="Toy sizes: does it run? Kept with --out alone.")
@click.option("--out", type=Path, help="Result file; without it one in benchmarks/results.")
def main(
    methods: tuple[str, ...],
    seeds: int,
    rounds: int,
    minutes: float | None,
    work: Path,
    threads: int,
    quick: bool,
    out: Path | None,
    **sizes: Any,
) -> None:
    """Held-out accuracy by round, method and seed; 2.2 GB a run. A call goes on where the last one ended."""
    methods = methods or ("gift", "grpo", "dpo")
    if quick:
        seeds, rounds, sizes = 1, 1, {**sizes, **QUICK}
    settings = start(threads, quick, **sizes)
    begun = time.monotonic()
    model = real_weights(work.absolute() / "model")
    runs = work.absolute() / ("quick" if quick else "runs")
    for number in range(1, rounds + 1):  # a round of every run before the next: methods can be compared at any time
        for seed in range(seeds):
            for method in methods:
                project = runs / f"{method}-{seed}"
                if minutes is not None and time.monotonic() - begun > 60 * minutes:
                    break
                prepare(project, model, method, seed, sizes)
                if not (project / f"data/history/r{number}.json").exists():
                    make_round(project, number)
                    say(f"{method}, seed {seed}, round {number}: {line(results_of(project)[-1])}")
    found = {}
    for project in sorted(runs.glob("*")):
        if (project / "data/history/r1.json").exists():
            commit = json.loads((project / "run.json").read_text(encoding="utf-8"))["commit"]
            found[project.name] = {"commit": commit, "rounds": results_of(project)}
    finish("real_model", settings, {"runs": found}, table, out)


def prepare(project: Path, model: Path, method: str, seed: int, sizes: dict[str, Any]) -> None:
    """A project as a user would set it up for this model and these chats, and its base policy's answers."""
    made = project / "run.json"
    if made.exists():
        if json.loads(made.read_text(encoding="utf-8"))["sizes"] != sizes:
            raise click.ClickException(f"{project} was made with other sizes; remove it, or name another --work")
    else:
        shutil.rmtree(project, ignore_errors=True)
        copy_project(project)
        shutil.copyfile(REWARDS, project / "rewards/chats.py")
        write_chats(project / "sources/chats.jsonl", 200)
        (project / "params.yaml").write_text(json.dumps(params_of(model, method, seed, sizes), indent=1))
        launch = read_yaml(project / "launch.yaml")
        launch["update"]["tokens_per_batch"] = launch.setdefault("reference", {})["tokens_per_batch"] = 4096
        (project / "launch.yaml").write_text(json.dumps(launch, indent=1))
        write_json(made, {"sizes": sizes, "commit": versions()["commit"]})
    for stage in BEFORE:
        run_stage(project, stage, "base")


def params_of(model: Path, method: str, seed: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """The shipped params.yaml with the method's preset laid over it, and what this model and these chats need."""
    params = read_yaml(ROOT / "params.yaml")
    columns = {"prompt": "messages"}
    length = {"max_tokens": sizes["max_tokens"], "max_model_len": 256}
    changes: dict[str, Any] = {
        "prepare": {
            "source": "sources/chats.jsonl",
            "columns": columns,
            "num_train": None,
            "num_eval": sizes["num_eval"],
        },
        "base": {"model": str(model)},
        "generate": {"prompts_per_round": sizes["prompts"], "group_size": sizes["group_size"], **length},
        "score": {"rewards": {"answer": {"function": "rewards/chats.py:does_it"}}},
        "update": {"warmup_steps": 0, "groups_per_step": max(1, sizes["prompts"] // 4)},
        "evaluate": length,
    }
    for section, keys in changes.items():
        params[section].update(keys)
    return laid_over(params, read_preset(PRESETS / f"{method}.yaml"), sizes["lr"], seed)


def make_round(project: Path, number: int) -> None:
    """All stages of a round; then the weights and moments of the round before are given back to the disk."""
    parents = {f"r{n}": {"from": f"r{n - 1}" if n > 1 else "base"} for n in range(1, number + 1)}
    (project / "rounds.yaml").write_text(json.dumps({"rounds": parents}))
    for stage in ROUND:
        run_stage(project, stage, f"r{number}", parents[f"r{number}"]["from"])
    for earlier in range(1, number):
        for name in ("policy", "optimizer"):
            shutil.rmtree(project / f"data/rounds/r{earlier}/{name}", ignore_errors=True)


def run_stage(project: Path, stage: str, key: str, parent: str = "") -> None:
    """The command that dvc.yaml has for a stage, where what it makes is not there; its seconds are kept."""
    found = read_yaml(project / "dvc.yaml")["stages"][stage]
    found = found.get("do", found)

    def filled(text: str) -> str:
        return text.replace("${key}", key).replace("${item.from}", parent)

    made = [next(iter(each)) if isinstance(each, dict) else each for each in found.get("outs", [])]
    if all((project / filled(path)).exists() for path in made):
        return
    environment = {**os.environ, "PYTHONPATH": ""}  # the project's own code, and nothing beside it
    command = [sys.executable, *filled(found["cmd"]).split()[1:]]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{project}: {stage} of {key}:\n{(done.stdout + done.stderr)[-3000:]}")
    if note := re.findall(r".*rows are padded.*", done.stderr):
        say(f"{stage} of {key}: {note[0]}")
    path = project / "seconds.json"
    seconds = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    seconds.setdefault(key, {})[stage] = round(time.perf_counter() - begin, 1)
    write_json(path, seconds)


def results_of(project: Path) -> list[dict[str, Any]]:
    """The base and the finished rounds of a run: accuracies, drift, and the seconds of each stage."""
    seconds = json.loads((project / "seconds.json").read_text(encoding="utf-8"))
    rounds = []
    for number in range(len(list((project / "data/history").glob("*.json")))):
        name = f"r{number}" if number else "base"
        path = project / f"data/history/{name}.json"
        if path.exists():
            history = json.loads(path.read_text(encoding="utf-8"))["round"]
            rounds.append({"round": name, "seconds": seconds[name], **{key: history.get(key) for key in KEPT}})
    return rounds


def line(found: dict[str, Any]) -> str:
    shown = [f"{label} {found[name]:.3f}" for name, label in SHOWN.items()]
    return ", ".join([*shown, f"{sum(found['seconds'].values()):.0f} s"])


def figure(result: dict[str, Any]) -> str:
    """The share of sampled held-out answers that is right, a line a seed and a thick one for the mean, as SVG."""
    import vl_convert

    rows = [
        {"method": run.rpartition("-")[0], "seed": run, "round": number, "right": each["eval/avg@4"]}
        for run, made in result["runs"].items()
        for number, each in enumerate(made["rounds"])
    ]
    x = {"field": "round", "type": "quantitative", "title": "round", "axis": {"tickMinStep": 1, "format": "d"}}
    y = {"field": "right", "type": "quantitative", "title": "held-out sampled answers right"}
    color = {"field": "method", "type": "nominal", "title": None}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "background": "white",
        "width": 420,
        "height": 220,
        "encoding": {"x": x, "color": color},
        "layer": [
            {
                "mark": {"type": "line", "opacity": 0.3, "strokeWidth": 1},
                "encoding": {"y": y, "detail": {"field": "seed"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2.5, "point": True},
                "encoding": {"y": {**y, "aggregate": "mean"}},
            },
        ],
    }
    return str(vl_convert.vegalite_to_svg(json.dumps(spec)))


def table(result: dict[str, Any]) -> str:
    """A row a method: means over its seeds by round, and the gain after the last with its standard error over seeds."""
    by_method: dict[str, list[list[dict[str, Any]]]] = {}
    for name, run in result["runs"].items():
        by_method.setdefault(name.rpartition("-")[0], []).append(run["rounds"])
    most = max((min(map(len, runs)) for runs in by_method.values()), default=1)  # rounds that all seeds have
    rows = []
    for method, runs in by_method.items():
        for name, label in SHOWN.items():
            curves = [[each[name] for each in rounds] for rounds in runs]
            means = [statistics.fmean(values) for values in zip(*curves, strict=False)]
            gains = [curve[len(means) - 1] - curve[0] for curve in curves]
            error = f" ({statistics.stdev(gains) / len(gains) ** 0.5:.3f})" if len(gains) > 1 else ""
            shown = [f"{value:.3f}" for value in means] + [""] * (most - len(means))
            rows.append([method, len(runs), label, *shown, f"{statistics.fmean(gains):+.3f}{error}"])
    header = ["method", "seeds", "held out", "base", *(f"r{number}" for number in range(1, most)), "gain (error)"]
    parts = [each["seconds"] for runs in by_method.values() for rounds in runs for each in rounds[1:]]
    lines = [markdown(header, rows)]
    if parts:
        medians = {stage: statistics.median(part[stage] for part in parts if stage in part) for stage in ROUND}
        told = ", ".join(f"{stage} {value:.0f}" for stage, value in medians.items())
        lines.append(f"\nSeconds of a round, by stage, medians: {told}. Tasks: {', '.join(TASKS)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
