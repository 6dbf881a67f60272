"""Who overfits: the methods of the study on 128 training prompts that every round uses again, by `gift compare`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import say
from benchmarks.overhead import copy_project
from benchmarks.results import finish, markdown, start, versions
from benchmarks.shapes import ROOT
from gift.compare.tables import interval, with_error
from gift.project.work import write_json
from gift.project.yaml import read_yaml

WORK = ROOT / "data/.work/overfit"
CHOSEN = ROOT / "compare/data/chosen"
METHODS = ("grpo", "gift", "gift-paper", "gvpo", "dpo-all-pairs")
BASELINE = "grpo"
KINDS = {"gap": "gap", "area": "held out, all rounds", "last": "held out, last round"}


@click.command()
@click.option("--method", "methods", multiple=True, help="Of compare/compare.yaml; the study's without it.")
@click.option("--seeds", default=10, show_default=True, help="Seeds 1, 2, ...")
@click.option("--rounds", default=8, show_default=True)
@click.option("--prompts", default=128, show_default=True, help="Training prompts, all of which a round uses.")
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, each of one thread.")
@click.option("--work", type=Path, default=WORK, help="Keeps the runs: a call goes on where the last one ended.")
@click.option("--quick", is_flag=True, help="Toy sizes: does it run? Kept with --out alone.")
@click.option("--out", type=Path, help="Result file; without it one in benchmarks/results.")
def main(
    methods: tuple[str, ...],
    seeds: int,
    rounds: int,
    prompts: int,
    jobs: int,
    work: Path,
    quick: bool,
    out: Path | None,
) -> None:
    """The reward on the prompts that were trained on less that on held-out ones, for each method against GRPO's."""
    if quick:
        methods, seeds, rounds, prompts = ("gift",), 1, 1, 16
    settings = start(1, quick, seeds=seeds, rounds=rounds, prompts=prompts)
    project = work.absolute() / ("quick" if quick else "project")
    commit = prepare(project, tuple(dict.fromkeys((BASELINE, *(methods or METHODS)))), settings)
    command = [sys.executable, "-m", "gift.cli", "compare", "--jobs", str(jobs)]
    done = subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=False)
    if done.returncode:
        raise click.ClickException(f"{project}: gift compare failed (above)")
    found = json.loads((project / "compare/data/report/table.json").read_text(encoding="utf-8"))
    finish("overfit", settings, {"rows": found["rows"], "made_at": commit}, table, out)


def prepare(project: Path, methods: tuple[str, ...], settings: dict[str, Any]) -> str:
    """A copy of this project with the comparison in it, and its commit; one that is there stays, and goes on."""
    made = project / "overfit.json"
    wanted = {"methods": list(methods), **{key: settings[key] for key in ("seeds", "rounds", "prompts")}}
    commit = versions()["commit"]
    if made.exists():
        before = json.loads(made.read_text(encoding="utf-8"))
        commit = before["commit"]
        if (before["prompts"], before["rounds"]) != (wanted["prompts"], wanted["rounds"]):
            raise click.ClickException(f"{project} was made with other --prompts or --rounds; remove it")
    else:
        say(f"a copy of the project in {project}")
        shutil.rmtree(project, ignore_errors=True)
        copy_project(project)
        shutil.rmtree(project / "compare/data", ignore_errors=True)
        (project / "compare/dvc.lock").unlink(missing_ok=True)
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    for name, content in changed(wanted).items():
        (project / "compare" / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_json(made, {**wanted, "commit": commit})
    return commit


def changed(wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """params.yaml and compare.yaml of the study for few prompts; each method keeps the rate that it chose there."""
    params, plan = (read_yaml(ROOT / "compare" / name) for name in ("params.yaml", "compare.yaml"))
    params["prepare"]["num_train"] = wanted["prompts"]
    params["generate"]["prompts_per_round"] = wanted["prompts"]
    rates = {}
    for name in wanted["methods"]:
        path = CHOSEN / f"{name}.json"
        if not path.exists():
            raise click.ClickException(f"{path}: no such file; `gift compare` chooses the rates first")
        rates[name] = json.loads(path.read_text(encoding="utf-8"))["lr"]
    for name, lr in rates.items():
        entry = plan["methods"].setdefault(name, {"preset": name})
        entry["update"] = {**entry.get("update", {}), "lr": lr}
    seeds = list(range(1, wanted["seeds"] + 1))
    nothing = {"run": [], "seeds": []}
    one = {"lrs": [rates[BASELINE]], "seeds": [101]}  # the baseline must be swept: over its own rate alone
    plan |= {"rounds": wanted["rounds"], "run": [BASELINE], "seeds": seeds, "sweep": one, "against": {}}
    plan |= {"more": nothing, "fixed": {"run": [name for name in rates if name != BASELINE], "seeds": seeds}}
    return {"params.yaml": params, "compare.yaml": plan}


def table(result: dict[str, Any]) -> str:
    """A row a method: the gap, accuracy, and the differences of both to GRPO's with their intervals."""
    rows = []
    for row in result["rows"]:
        cells = [row["method"], row["seeds"], f"{row['lr']:g}"]
        for kind in KINDS:
            cells += [with_error(row, kind), "" if row["method"] == row["against"] else interval(row, kind)]
        rows.append([*cells, f"{row['kl']:.2f}"])
    differences = [text for kind in KINDS.values() for text in (kind, f"less {BASELINE}'s")]
    return markdown(["method", "seeds", "lr", *differences, "KL"], rows)


if __name__ == "__main__":
    main()
