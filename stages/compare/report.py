"""The table and the figures of a comparison, from all of its runs."""

import json
from pathlib import Path

import click

from gift.compare.figures import CURVES, curves, differences, rates
from gift.compare.numbers import read_choice, read_run
from gift.compare.plan import read_plan
from gift.compare.tables import frozen_markdown, frozen_rows, markdown, rows_of, sweep_markdown
from gift.project import console
from gift.project.errors import UserError
from gift.project.work import refuse_existing, write_json, write_text


@click.command()
@click.option("--plan", type=Path, required=True)
@click.option("--data", type=Path, required=True, help="The folder of the comparison's files.")
@click.argument("out", type=Path)
def main(plan: Path, data: Path, out: Path) -> None:
    console.quiet()
    refuse_existing(out)
    wanted = read_plan(plan)
    runs = {
        name: [read_run(data / "runs" / name / f"{seed}.json") for seed in wanted.seeds_of(name)]
        for name in wanted.names
    }
    choices = {name: read_choice(data / "chosen" / f"{name}.json") for name in wanted.run}
    for name in runs:
        if missing := {wanted.metric} - runs[name][0].rows[0].keys():
            raise UserError(f"{plan}: metric: {min(missing)}: no such number in the runs of {name}")
    changes = {name: json.loads((data / "methods" / f"{name}.json").read_text(encoding="utf-8")) for name in runs}
    own_rewards = {name for name, changed in changes.items() if "score" in changed}
    rows = rows_of(runs, choices, wanted.baseline, wanted.metric, wanted.against, own_rewards)
    frozen = frozen_rows(runs, wanted.baseline, wanted.metric)
    left_out = [name for name in runs if name not in {row["method"] for row in frozen}]
    facts = {"metric": wanted.metric, "baseline": wanted.baseline, "rounds": wanted.rounds}
    write_json(out / "table.json", {**facts, "rows": rows, "frozen": frozen})
    write_text(out / "table.md", markdown(rows, wanted.baseline, wanted.metric, wanted.rounds))
    write_text(out / "sweep.md", sweep_markdown(choices, wanted.metric, wanted.rounds))
    write_text(out / "frozen.md", frozen_markdown(frozen, wanted.metric, left_out))
    write_text(out / "rates.svg", rates(choices, wanted.baseline))
    for end, names in (("", wanted.run), ("-fixed", wanted.fixed.run)):
        if not names:
            continue
        others = {name: wanted.against.get(name, wanted.baseline) for name in names}
        own = [row for row in rows if row["method"] in others]
        write_text(out / f"differences{end}.svg", differences(own, wanted.metric, wanted.rounds))
        for name in CURVES:
            of_rewards = own_rewards if name in ("reward", "gap") else set()
            if drawn := {method: other for method, other in others.items() if method not in of_rewards}:
                write_text(out / f"{name}{end}.svg", curves(runs, drawn, name))
    console.say("compare_report", methods=len(rows), runs=sum(map(len, runs.values())))


if __name__ == "__main__":
    console.run(main)
