"""Train one round on the scored rollouts: the next policy and its optimizer state."""

from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section, read_seed
from gift.training.inputs import Paths, Settings
from gift.training.round import update_policy
from gift.training.settings import Update, UpdateLaunch


@click.command()
@click.option("--round", "name", required=True)
@click.option("--overrides", type=Path, help="What the round changes: the folder that stages.overrides made.")
@click.option("--base", type=Path, required=True)
@click.option("--policy", type=Path, required=True)
@click.option("--optimizer", type=Path, required=True)
@click.option("--rollouts", type=Path, required=True)
@click.option("--scores", type=Path, required=True)
@click.option("--reference", type=Path, required=True)
@click.option("--out-policy", type=Path, required=True)
@click.option("--out-optimizer", type=Path, required=True)
@click.option("--metrics", type=Path, required=True)
@click.option("--steps", type=Path, required=True)
def main(name: str, overrides: Path | None, **paths: Path) -> None:
    console.quiet()
    update, launch = read_section("update", Update, overrides), read_launch("update", UpdateLaunch)
    label = f"update@{name}"
    numbers = update_policy(label, Paths(**paths), Settings(update, launch, read_seed()))
    if numbers is not None:
        shown = ("num_steps", "num_groups_trained", "num_tokens_trained", "kl", "log_ratio_std")
        console.say(label, **{key: numbers[key] for key in shown})


if __name__ == "__main__":
    console.run(main)
