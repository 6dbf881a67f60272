"""Train one round on the scored rollouts: the next policy and its optimizer state."""

from dataclasses import fields
from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section, read_seed
from gift.training.inputs import Paths, Settings
from gift.training.round import update_policy
from gift.training.settings import Update, UpdateLaunch
from stages import of_round, paths


@click.command()
@of_round
@paths(*(each.name for each in fields(Paths)))
def main(name: str, overrides: Path | None, **files: Path) -> None:
    console.quiet()
    update, launch = read_section("update", Update, overrides), read_launch("update", UpdateLaunch)
    label = f"update@{name}"
    numbers = update_policy(label, Paths(**files), Settings(update, launch, read_seed()))
    if numbers is not None:
        shown = ("num_steps", "num_groups_trained", "num_tokens_trained", "kl", "log_ratio_std")
        console.say(label, **{key: numbers[key] for key in shown})


if __name__ == "__main__":
    console.run(main)
