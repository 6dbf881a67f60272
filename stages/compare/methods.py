"""Write down what each method of a comparison changes in params.yaml, a file for each."""

import json
from pathlib import Path

import click

from gift.compare.plan import changes_of, check_content, laid_over, read_plan
from gift.methods.names import PRESETS
from gift.project import console
from gift.project.work import refuse_existing, write_json
from gift.project.yaml import read_yaml


@click.command()
@click.option("--plan", type=Path, required=True)
@click.option("--params", type=Path, required=True)
@click.argument("out", type=Path)
def main(plan: Path, params: Path, out: Path) -> None:
    refuse_existing(out)
    wanted, content = read_plan(plan), read_yaml(params)
    made = {name: changes_of(name, wanted, PRESETS, plan) for name in wanted.names}
    for name, changes in made.items():
        check_content(laid_over(content, changes, wanted.sweep.lrs[0], 0), f"{plan}: methods.{name}")
    for name, changes in made.items():
        write_json(out / f"{name}.json", json.loads(json.dumps(changes)))
    console.say("compare_methods", methods=len(made))


if __name__ == "__main__":
    console.run(main)
