"""Give every completion of a round its explicit rewards."""

from pathlib import Path

import click

from gift.project import console
from gift.project.params import read_launch, read_section
from gift.project.work import refuse_existing, write_json
from gift.scoring.looks import constant_rewards
from gift.scoring.metrics import score_metrics
from gift.scoring.rows import Asked
from gift.scoring.score import score_table, write_tables
from gift.scoring.settings import Score, ScoreLaunch
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import without_given
from gift.workers.settings import Workers
from stages import of_round, paths


@click.command()
@of_round
@paths("rollouts", "prompts", "out", "notes", "metrics")
def main(
    name: str, overrides: Path | None, rollouts: Path, prompts: Path, out: Path, notes: Path, metrics: Path
) -> None:
    console.quiet()
    refuse_existing(out, notes, metrics)
    score, launch = read_section("score", Score, overrides), read_launch("score", ScoreLaunch)
    table, _ = read_prompts(prompts)
    asks = Asked(score, table)
    asks.refuse_useless()
    label = f"score@{name}"
    work, scored = score_table(label, rollouts, prompts, table, score, launch, read_launch("workers", Workers))
    for line in constant_rewards(scored.scores, score.rewards):
        click.echo(f"{label}: {line}", err=True)
    numbers = score_metrics(scored.rows, scored.scores, score)
    sampled = without_given(scored.rows)["prompt_id"].to_pylist()
    asked = {key: len(asks.rows(key, sampled)) for key, reward in score.rewards.items() if reward.where}
    numbers |= {f"rewards/{key}/num_asked": count for key, count in asked.items()}
    made = {work.folder / "scores": out, work.folder / "notes": notes, work.folder / "score.json": metrics}
    write_tables(work.folder / "everything", score, *list(made)[:2])
    write_json(work.folder / "score.json", numbers)
    work.publish(made)
    shown = {key: numbers[key] for key in ("num_scored", "num_failed", "num_abstained", "reward", "reward_std")}
    shown |= {f"{key}_asked": count for key, count in asked.items()}
    console.say(label, **shown, slowest=scored.slowest, values_reused=scored.num_reused)


if __name__ == "__main__":
    console.run(main)
