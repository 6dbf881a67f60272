"""Choose the learning rate of a method by its runs on the dev split."""

from dataclasses import asdict
from pathlib import Path

import click

from gift.compare.numbers import choose, read_run
from gift.compare.plan import read_plan
from gift.project import console
from gift.project.work import refuse_existing, write_json


@click.command()
@click.option("--plan", type=Path, required=True)
@click.option("--runs", type=Path, required=True, help="The folder of the method's runs.")
@click.option("--out", type=Path, required=True)
def main(plan: Path, runs: Path, out: Path) -> None:
    refuse_existing(out)
    wanted = read_plan(plan)
    made = [read_run(runs / f"{lr}-{seed}.json") for lr in wanted.sweep.lrs for seed in wanted.sweep.seeds]
    choice = choose(made, wanted.metric)
    write_json(out, asdict(choice))
    console.say(f"compare_choose@{runs.name}", lr=f"{choice.lr:g}", **{choice.metric: choice.reached[choice.lr]})


if __name__ == "__main__":
    console.run(main)
