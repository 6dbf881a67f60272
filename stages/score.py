"""Give every completion of a round its explicit rewards."""

from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section
from gift.project.work import refuse_existing, write_json
from gift.scoring.asked import Asked
from gift.scoring.metrics import score_metrics
from gift.scoring.rows import Prompts
from gift.scoring.score import score_table
from gift.scoring.settings import Score, ScoreLaunch
from gift.tables.prompts import read_prompts


@click.command()
@click.argument("rollouts", type=Path)
@click.argument("prompts", type=Path)
@click.argument("out", type=Path)
@click.argument("metrics", type=Path)
def main(rollouts: Path, prompts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    score, launch = read_section("score", Score), read_launch("score", ScoreLaunch)
    table, _ = read_prompts(prompts)
    Asked(score, Prompts(table)).refuse_useless()
    work, scored = score_table("score", rollouts, prompts, table, out, score, launch)
    numbers = score_metrics(scored.rows, scored.scores, score.rewards)
    asked = {name: scored.num_asked[name] for name, reward in score.rewards.items() if reward.where}
    numbers |= {f"rewards/{name}/num_asked": count for name, count in asked.items()}
    write_json(work.folder / "score.json", numbers)
    work.publish({work.folder / "scores": out, work.folder / "score.json": metrics})
    shown = {name: numbers[name] for name in ("num_scored", "num_failed", "num_abstained", "reward", "reward_std")}
    shown |= {f"{name}_asked": count for name, count in asked.items()}
    console.say(f"score@{out.parent.name}", **shown, slowest=scored.slowest, values_reused=scored.num_reused)


if __name__ == "__main__":
    console.run(main)
