"""Score the held-out answers of a policy; its accuracies, and the round's row in the history."""

import csv
import json
from pathlib import Path

import click
import pyarrow.compute as pc

from gift.evaluation.estimates import evaluation, rights_of
from gift.project import console
from gift.project.params import read_launch, read_section
from gift.project.work import refuse_existing, write_json
from gift.sampling.settings import Evaluate
from gift.scoring.score import score_table
from gift.scoring.settings import Score, ScoreLaunch, refuse_judges


@click.command()
@click.option("--round", "name", required=True)
@click.option("--answers", type=Path, required=True)
@click.option("--prompts", type=Path, required=True)
@click.option("--metrics", type=Path, required=True)
@click.option("--history", type=Path, required=True)
@click.option("--gather", type=Path, multiple=True, help="Other metrics of the round, for its history.")
@click.option("--steps", "steps_csv", type=Path, help="The steps of its update, likewise.")
def main(
    name: str,
    answers: Path,
    prompts: Path,
    metrics: Path,
    history: Path,
    gather: tuple[Path, ...],
    steps_csv: Path | None,
) -> None:
    """The base policy has no other metrics and no steps."""
    console.quiet()
    refuse_existing(metrics, history)
    score, judges = read_section("score", Score), read_section("evaluate", Evaluate).judges
    refuse_judges(judges, score)
    opened = score_table(
        f"evaluate@{name}",
        answers,
        prompts,
        score,
        read_launch("score", ScoreLaunch),
        refuse=lambda asked: asked.correct(judges) if judges else None,
    )
    work, source, asked = opened.work, opened.source, opened.prompts
    rows, scores = opened.scored.rows, opened.scored.scores
    domains = asked["domain"].to_pylist() if "domain" in asked.column_names else [None] * asked.num_rows
    prompt_ids = rows["prompt_id"].to_pylist()
    rewards = scores["reward"].to_pylist()
    rights = rights_of(prompt_ids, {judge: scores[judge].to_pylist() for judge in judges})
    numbers: dict[str, float] = {
        **evaluation(
            prompt_ids,
            rows["sample"].to_pylist(),
            rewards,
            rights,
            dict(zip(asked["prompt_id"].to_pylist(), domains, strict=True)),
            source["num_samples"],
        ),
        "eval/mean_length": pc.mean(rows["num_tokens"]).as_py(),
        "eval/clipped_ratio": pc.mean(pc.equal(rows["finish_reason"], "length")).as_py(),
        "eval/num_prompts_too_long": source["num_prompts_too_long"],
        "eval/num_unscored": (rewards if rights is None else rights).count(None),
    }
    row: dict[str, object] = {"name": name, "round": source["round"], **numbers}
    steps: list[dict[str, object]] = []
    for path in gather:
        row |= json.loads(path.read_text(encoding="utf-8"))
    if steps_csv:
        with steps_csv.open(encoding="utf-8", newline="") as file:
            steps = [
                {key: float(text) if text else None for key, text in line.items()} for line in csv.DictReader(file)
            ]
    write_json(work.folder / "evaluate.json", numbers)
    write_json(work.folder / "history.json", {"round": row, "steps": steps})
    work.publish({work.folder / "evaluate.json": metrics, work.folder / "history.json": history})
    shown = {key: numbers[key] for key in list(numbers)[: 6 if judges else 4 : 2]}
    console.say(f"evaluate@{name}", **{key.removeprefix("eval/"): value for key, value in shown.items()})


if __name__ == "__main__":
    console.run(main)
