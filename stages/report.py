"""Gather the history of all rounds into the two tables that `dvc plots` draws."""

import json
from pathlib import Path
from typing import Any

import click

from gift.project import console
from gift.project.code import check_code
from gift.project.errors import UserError
from gift.project.yaml import read_yaml


def read_history(folder: Path, names: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of rounds and of steps, by round number; `step` counts from the base policy on."""
    paths = [folder / f"{name}.json" for name in ("base", *names)]
    histories = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if not histories:
        raise UserError(f"{folder}: no history; `dvc repro evaluate` makes it")
    histories.sort(key=lambda history: (history["round"]["round"], history["round"]["name"]))
    rounds = [history["round"] for history in histories]
    names = sorted({name for row in rounds for name in row})
    # DVC's plots stop at a missing key; a null is left out of the line, which is what is meant.
    rounds = [{name: row.get(name) for name in names} for row in rounds]
    steps = [{**step, "round": history["round"]["round"]} for history in histories for step in history["steps"]]
    return rounds, steps


@click.command()
@click.option("--chain", type=Path, required=True)
@click.option("--history", type=Path, required=True)
@click.option("--rounds", type=Path, required=True)
@click.option("--steps", type=Path, required=True)
def main(chain: Path, history: Path, rounds: Path, steps: Path) -> None:
    """The chain is rounds.yaml: a round that was taken out of it is left out here too."""
    code = check_code("report")
    round_rows, step_rows = read_history(history, list(read_yaml(chain)["rounds"]))
    check_code("report", code)
    for path, rows in ((rounds, round_rows), (steps, step_rows)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    console.say("report", policies=len(round_rows), steps=len(step_rows))


if __name__ == "__main__":
    console.run(main)
