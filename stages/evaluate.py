"""Score the held-out answers of a policy; its accuracies, and the round's row in the history."""

import csv
import json
from pathlib import Path

import click
import pyarrow.compute as pc

from gift import console
from gift.estimates import evaluation
from gift.launch import read_launch
from gift.params import read_params
from gift.score import USER_FOLDER, score_parts
from gift.tables.prompts import read_prompts
from gift.tables.schemas import ROLLOUTS, check_rollouts, check_scores, read_table, scores_schema
from gift.work import Work, file_digest, refuse_existing, tree_digest, write_json


@click.command()
@click.argument("answers", type=Path)
@click.argument("prompts", type=Path)
@click.argument("metrics", type=Path)
@click.argument("history", type=Path)
@click.argument("others", type=Path, nargs=-1)
def main(answers: Path, prompts: Path, metrics: Path, history: Path, others: tuple[Path, ...]) -> None:
    """OTHERS are the round's other metrics (JSON) and its steps (CSV), gathered into HISTORY for plots."""
    console.quiet()
    refuse_existing(metrics, history)
    params, launch = read_params(), read_launch()
    table, source = read_table(answers, ROLLOUTS, check_rollouts)
    asked, _ = read_prompts(prompts)
    name = answers.parent.name
    metadata = {"artifact": "scores", "policy": source["policy"], "settings": params.score.model_dump(mode="json")}
    inputs = {
        **metadata,
        "answers": tree_digest(answers),
        "prompts": file_digest(prompts),
        "rewards": tree_digest(USER_FOLDER),
    }
    work = Work("evaluate", answers, inputs)
    folder = work.folder / "scores"
    score_parts(folder, answers, asked, params.score, launch.score.workers, metadata, f"evaluate@{name}")
    scores, _ = read_table(folder, scores_schema(params.score.rewards), check_scores)
    domains = asked["domain"].to_pylist() if "domain" in asked.column_names else [None] * asked.num_rows
    correct = params.evaluate.correct
    numbers: dict[str, float] = {
        **evaluation(
            table["prompt_id"].to_pylist(),
            table["sample"].to_pylist(),
            scores["reward"].to_pylist(),
            scores[correct].to_pylist() if correct else None,
            correct,
            dict(zip(asked["prompt_id"].to_pylist(), domains, strict=True)),
            source["settings"]["num_samples"],
        ),
        "eval/mean_length": pc.mean(pc.list_value_length(table["completion_ids"])).as_py(),
        "eval/clipped_ratio": pc.mean(pc.equal(table["finish_reason"], "length")).as_py(),
        "eval/num_prompts_too_long": source["num_prompts_too_long"],
        "eval/num_unscored": scores[correct or "reward"].null_count,
    }
    row: dict[str, object] = {"name": name, "round": source["round"], **numbers}
    steps: list[dict[str, object]] = []
    for path in others:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                steps = [
                    {key: float(text) if text else None for key, text in line.items()} for line in csv.DictReader(file)
                ]
        else:
            row |= json.loads(path.read_text(encoding="utf-8"))
    write_json(work.folder / "evaluate.json", numbers)
    write_json(work.folder / "history.json", {"round": row, "steps": steps})
    work.publish({work.folder / "evaluate.json": metrics, work.folder / "history.json": history})
    shown = {key: numbers[key] for key in list(numbers)[: 6 if correct else 4 : 2]}
    console.say(f"evaluate@{name}", **{key.removeprefix("eval/"): value for key, value in shown.items()})


if __name__ == "__main__":
    console.run(main)
