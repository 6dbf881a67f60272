"""Score the held-out answers of a policy; its accuracies, and the round's row in the history."""

import csv
import json
from pathlib import Path

import click
import pyarrow.compute as pc

from gift import console
from gift.errors import UserError
from gift.estimates import accuracies
from gift.launch import read_launch
from gift.params import read_params
from gift.score import score_table
from gift.work import refuse_existing, write_json


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
    opened = score_table("evaluate", answers, prompts, answers, params.score, launch.score)
    name, work, source = answers.parent.name, opened.work, opened.source
    rows, scores = opened.scored.rows, opened.scored.scores
    correct: dict[str, dict[int, bool]] = {}
    columns = (rows["prompt_id"], rows["sample"], scores[params.evaluate.correct])
    for prompt_id, sample, value in zip(*(column.to_pylist() for column in columns), strict=True):
        rights = correct.setdefault(prompt_id, {})
        if value is not None:
            if value not in (0.0, 1.0):
                raise UserError(
                    f"params.yaml: evaluate.correct: '{params.evaluate.correct}' gave {value:g} for "
                    f"prompt_id={prompt_id}; it must be a reward that is 1 for a right answer and 0 for a wrong one"
                )
            rights[sample] = value == 1
    numbers = {
        **accuracies(correct, source["settings"]["num_samples"]),
        "eval/mean_length": pc.mean(rows["num_tokens"]).as_py(),
        "eval/clipped_ratio": pc.mean(pc.equal(rows["finish_reason"], "length")).as_py(),
        "eval/num_prompts": len(correct),
        "eval/num_prompts_too_long": source["num_prompts_too_long"],
        "eval/num_unscored": scores[params.evaluate.correct].null_count,
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
    shown = {key: numbers[key] for key in list(numbers)[:6:2]}
    console.say(f"evaluate@{name}", **{key.removeprefix("eval/"): value for key, value in shown.items()})


if __name__ == "__main__":
    console.run(main)
