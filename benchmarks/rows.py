"""Memory of the stages that are no model pass, as the rows of a round grow to a million."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import Run, measured
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown
from benchmarks.rewards import GROUP, run_module, write_round
from gift.project.yaml import read_yaml

PLACES = {
    "score": ["--out", "data/rounds/r1/scores", "--notes", "data/rounds/r1/notes", "--metrics", "score.json"],
    "evaluate": ["--scores", "answer_scores", "--metrics", "evaluate.json", "--history", "history.json"],
}
COMMANDS = {
    "score": [
        "stages.score",
        "--round",
        "r1",
        "--rollouts",
        "rollouts",
        "--prompts",
        "prompts.parquet",
        *PLACES["score"],
    ],
    "evaluate": [
        "stages.evaluate",
        "--round",
        "r1",
        "--answers",
        "rollouts",
        "--prompts",
        "prompts.parquet",
        *PLACES["evaluate"],
    ],
    "gift inspect": ["gift.cli", "inspect", "data/rounds/r1"],
    "gift report": ["gift.cli", "report"],
    "gift inspect --by spread": ["gift.cli", "inspect", "data/rounds/r1", "--by", "spread"],
    "prepare": [
        "stages.prepare",
        "data/prompts/train.parquet",
        "data/prompts/eval.parquet",
        "data/prompts/prepare.json",
    ],
}


@measured(quick={}, dtypes=False)
@click.option("--rows", "counts", default="10000,100000,1000000", show_default=True, help="Completions of a round.")
@click.option("--tokens", default=100, show_default=True, help="Tokens of each.")
def main(run: Run, counts: str, tokens: int) -> None:
    """The most memory that a stage or a worker of it has; prompts are an eighth of the rows."""
    numbers = [2048, 4096] if run.quick else [int(each) for each in counts.split(",")]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "round")
            fresh(write_project, folder, number, tokens)
            for name in COMMANDS:
                if name == "prepare":
                    shutil.rmtree(folder / "data/prompts")
                found.setdefault(name, {})[str(number)] = run_module(folder, *COMMANDS[name])
                say(f"{number:,} rows: {name}: {found[name][str(number)]}")
    finish("rows", {**run.settings, "rows": numbers, "tokens": tokens}, {"stages": found}, table, run.out)


def write_project(folder: Path, rows: int, tokens: int) -> None:
    """The round of `benchmarks/rewards.py`, and a source of as many prompts."""
    write_round(folder, rows, tokens)
    params = read_yaml(folder / "params.yaml")
    params["prepare"] |= {"source": "sources/all.jsonl", "num_train": None, "num_eval": 100}
    params["evaluate"]["correct"] = None
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    (folder / "sources").mkdir()
    with (folder / "sources/all.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows // GROUP):
            file.write(json.dumps({"prompt": f"What comes after {number}?", "answer": str(number + 1)}) + "\n")
    (folder / "data/prompts").mkdir(parents=True)
    shutil.copyfile(folder / "prompts.parquet", folder / "data/prompts/train.parquet")
    (folder / "data/rounds/r1").mkdir(parents=True)
    (folder / "data/rounds/r1/rollouts").symlink_to(folder / "rollouts")
    (folder / "rounds.yaml").write_text("rounds: {r1: {from: base}}\n", encoding="utf-8")
    (folder / "data/history").mkdir()
    for number, name in enumerate(("base", "r1")):
        history = {"round": {"name": name, "round": number, "num_rollouts": rows}, "steps": []}
        (folder / f"data/history/{name}.json").write_text(json.dumps(history), encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """A row a stage: seconds and MiB by the number of rows, and bytes that a further row takes."""
    numbers = [str(each) for each in result["settings"]["rows"]]
    few, many = numbers[-2:]
    rows = []
    for name, each in result["stages"].items():
        more = (each[many]["peak_mib"] - each[few]["peak_mib"]) * 2**20 / (int(many) - int(few))
        cells = [f"{each[number][key]:,.3g}" for key in ("seconds", "peak_mib") for number in numbers]
        rows.append([name, *cells, f"{more:,.0f}"])
    head = ["stage", *(f"{int(n):,} rows, {unit}" for unit in ("s", "MiB") for n in numbers), "bytes a further row"]
    return markdown(head, rows)


if __name__ == "__main__":
    main()
