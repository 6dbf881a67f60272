"""Give every completion of a round its explicit rewards."""

from pathlib import Path

import click

from gift import console
from gift.launch import read_launch
from gift.params import read_params
from gift.score import USER_FOLDER, score_parts
from gift.score_metrics import score_metrics
from gift.tables.prompts import read_prompts
from gift.tables.schemas import ROLLOUTS, check_rollouts, check_same_rows, check_scores, read_table, scores_schema
from gift.work import Work, file_digest, refuse_existing, tree_digest, write_json


@click.command()
@click.argument("rollouts", type=Path)
@click.argument("prompts", type=Path)
@click.argument("out", type=Path)
@click.argument("metrics", type=Path)
def main(rollouts: Path, prompts: Path, out: Path, metrics: Path) -> None:
    console.quiet()
    refuse_existing(out, metrics)
    params, launch = read_params(), read_launch()
    sampled, source = read_table(rollouts, ROLLOUTS, check_rollouts)
    asked, _ = read_prompts(prompts)
    label = f"score@{out.parent.name}"
    metadata = {"artifact": "scores", "policy": source["policy"], "settings": params.score.model_dump(mode="json")}
    inputs = {
        **metadata,
        "rollouts": tree_digest(rollouts),
        "prompts": file_digest(prompts),
        "rewards": tree_digest(USER_FOLDER),
    }
    work = Work("score", out, inputs)
    folder = work.folder / "scores"
    slowest = score_parts(folder, rollouts, asked, params.score, launch.score.workers, metadata, label)
    scores, _ = read_table(folder, scores_schema(params.score.rewards), check_scores)
    check_same_rows(scores, sampled, folder)
    numbers = score_metrics(sampled, scores, params.score.rewards)
    write_json(work.folder / "score.json", numbers)
    work.publish({folder: out, work.folder / "score.json": metrics})
    shown = {name: numbers[name] for name in ("num_scored", "num_failed", "num_abstained", "reward", "reward_std")}
    slow = f"{slowest.seconds:.2g} s ({slowest.name})" if slowest.name else "reused"
    console.say(label, **shown, slowest=slow)


if __name__ == "__main__":
    console.run(main)
