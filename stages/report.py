"""Gather the history of all rounds into the two tables that `dvc plots` draws."""

import json
from pathlib import Path
from typing import Any

import click

from gift.errors import UserError


def read_history(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of rounds and of steps, by round number; `step` counts from the base policy on."""
    histories = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not histories:
        raise UserError(f"{folder}: no history; run `dvc repro`")
    histories.sort(key=lambda history: (history["round"]["round"], history["round"]["name"]))
    rounds = [history["round"] for history in histories]
    names = sorted({name for row in rounds for name in row})
    # DVC's plots stop at a missing key; a null is left out of the line, which is what is meant.
    rounds = [{name: row.get(name) for name in names} for row in rounds]
    steps = [{**step, "round": history["round"]["round"]} for history in histories for step in history["steps"]]
    return rounds, steps


@click.command()
@click.argument("history", type=Path)
@click.argument("rounds", type=Path)
@click.argument("steps", type=Path)
def main(history: Path, rounds: Path, steps: Path) -> None:
    round_rows, step_rows = read_history(history)
    for path, rows in ((rounds, round_rows), (steps, step_rows)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
