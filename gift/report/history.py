"""The history: a row a round and its steps, gathered when the round is evaluated, and those of all rounds together."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.work import read_json

HISTORY = Path("data/history")


def round_history(row: dict[str, Any], others: Iterable[Path]) -> dict[str, Any]:
    """A round's entry: `row` with the round's other metrics (JSON) as `round`, and its steps (CSV) as `steps`."""
    steps: list[dict[str, Any]] = []
    for path in others:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file))
            steps = [{key: float(text) if text else None for key, text in line.items()} for line in lines]
        else:
            row = row | read_json(path)
    return {"round": row, "steps": steps}


def read_entry(path: Path) -> dict[str, Any]:
    """A round's entry, as `round_history` made it; a `UserError` where it is none."""
    entry = read_json(path) if path.is_file() else None
    if isinstance(entry, dict) and isinstance(entry.get("round"), dict) and isinstance(entry.get("steps"), list):
        row, steps = entry["round"], entry["steps"]
        if isinstance(row.get("round"), int) and "name" in row and all(isinstance(step, dict) for step in steps):
            return entry
    stage = "evaluate_base" if path.stem == "base" else f"evaluate@{path.stem}"
    raise UserError(f"{path}: no entry of the history; take it back (git), or remove it and run `dvc repro {stage}`")


def read_history(folder: Path, lines: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of rounds and of steps, branch after branch; `step` counts from the base policy on.

    lines: the names of the policies on each branch (`gift.project.rounds.branches`). The one that a branch leaves has a
    row there too, so that its line begins at it; what is not made yet has none.
    """
    names = dict.fromkeys(name for line in lines.values() for name in line)
    paths = {name: folder / f"{name}.json" for name in names}
    found = {name: read_entry(path) for name, path in paths.items() if path.exists()}
    if not found:
        raise UserError(f"{folder}: no history; `dvc repro evaluate` makes it")
    # DVC's plots stop at a missing key; a null is left out of the line, which is what is meant.
    columns = sorted({column for history in found.values() for column in history["round"]})
    rounds, steps = [], []
    for branch, line in lines.items():
        for name in filter(found.get, line):
            row = found[name]["round"]
            rounds.append({**{column: row.get(column) for column in columns}, "branch": branch})
            own = found[name]["steps"] if name != line[0] else []
            steps += [{**step, "round": row["round"], "branch": branch} for step in own]
    return rounds, steps
