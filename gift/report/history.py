"""The history: a row a round and its steps, gathered when the round is evaluated, and those of all rounds together."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gift.project.errors import UserError


def round_history(row: dict[str, Any], others: Iterable[Path]) -> dict[str, Any]:
    """A round's entry: `row` with the round's other metrics (JSON) as `round`, and its steps (CSV) as `steps`."""
    steps: list[dict[str, Any]] = []
    for path in others:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file))
            steps = [{key: float(text) if text else None for key, text in line.items()} for line in lines]
        else:
            row = row | json.loads(path.read_text(encoding="utf-8"))
    return {"round": row, "steps": steps}


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
