"""Gather the history of all rounds: the two tables that `dvc plots` draws, and a summary with fixed names."""

import json
from pathlib import Path

import click

from gift.project import console
from gift.project.code import check_code
from gift.project.door import check_unchanged
from gift.project.rounds import branches, read_rounds
from gift.report.history import read_history
from gift.report.outcome import summary as summarise
from stages import paths


@click.command()
@paths("chain", "history", "rounds", "steps", "summary")
def main(chain: Path, history: Path, rounds: Path, steps: Path, summary: Path) -> None:
    """The chain is rounds.yaml: a round that was taken out of it is left out here too."""
    code = check_code("report")
    lines = branches(read_rounds(chain))
    round_rows, step_rows = read_history(history, lines)
    check_unchanged("report", code)
    made = summarise([row for row in round_rows if row["branch"] == next(iter(lines))])
    for path, rows in ((rounds, round_rows), (steps, step_rows), (summary, made)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    names = dict.fromkeys(name for line in lines.values() for name in line)
    absent = ", ".join(name for name in names if not (history / f"{name}.json").exists())
    console.say("report", policies=len(round_rows), steps=len(step_rows), **({"without": absent} if absent else {}))


if __name__ == "__main__":
    console.run(main)
