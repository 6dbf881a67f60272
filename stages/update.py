"""Train one round on the scored rollouts: the next policy and its optimizer state."""

from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section, read_seed
from gift.training.inputs import Paths, Settings
from gift.training.round import update_policy
from gift.training.settings import Update, UpdateLaunch


@click.command()
@click.argument("base", type=Path)
@click.argument("policy", type=Path)
@click.argument("optimizer", type=Path)
@click.argument("rollouts", type=Path)
@click.argument("scores", type=Path)
@click.argument("reference", type=Path)
@click.argument("out_policy", type=Path)
@click.argument("out_optimizer", type=Path)
@click.argument("metrics", type=Path)
@click.argument("steps", type=Path)
def main(**paths: Path) -> None:
    console.quiet()
    update, launch = read_section("update", Update), read_launch("update", UpdateLaunch)
    numbers = update_policy(Paths(**paths), Settings(update, launch, read_seed()))
    if numbers is not None:
        shown = ("num_steps", "num_groups_trained", "num_tokens_trained", "kl", "log_ratio_std")
        console.say(f"update@{paths['out_policy'].parent.name}", **{name: numbers[name] for name in shown})


if __name__ == "__main__":
    console.run(main)
