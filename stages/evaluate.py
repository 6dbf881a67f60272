"""Score the held-out answers of a policy, as a table; its accuracies, and the round's row in the history."""

from pathlib import Path

import click

from gift.evaluation.estimates import answer_numbers
from gift.project import console
from gift.project.params import read_launch, read_section
from gift.project.work import refuse_existing, write_json
from gift.report.history import round_history
from gift.sampling.settings import Evaluate
from gift.scoring.rows import Asked
from gift.scoring.score import score_table, write_answer_scores
from gift.scoring.settings import Score, ScoreLaunch, refuse_judges
from gift.tables.prompts import read_prompts
from gift.workers.settings import Workers
from stages import of_round, paths


@click.command()
@of_round
@paths("answers", "prompts", "scores", "metrics", "history")
@click.option("--gather", "others", type=Path, multiple=True, help="Other metrics of the round, for its history.")
def main(
    name: str,
    overrides: Path | None,
    answers: Path,
    prompts: Path,
    scores: Path,
    metrics: Path,
    history: Path,
    others: tuple[Path, ...],
) -> None:
    """The base policy has no other metrics; of a round they are JSON, and its steps CSV."""
    console.quiet()
    refuse_existing(scores, metrics, history)
    score, judges = read_section("score", Score, overrides), read_section("evaluate", Evaluate, overrides).judges
    refuse_judges(judges, score)
    table, _ = read_prompts(prompts)
    if judges:
        Asked(score, table).correct(judges)
    launch = read_launch("score", ScoreLaunch)
    work, scored = score_table(
        f"evaluate@{name}", answers, prompts, table, score, launch, read_launch("workers", Workers)
    )
    numbers = answer_numbers(scored.rows, scored.scores, table, judges, scored.source)
    row = {"name": name, "round": scored.source["round"], **numbers}
    made = {"answer_scores": scores, "evaluate.json": metrics, "history.json": history}
    write_answer_scores(work.folder / "everything", score, judges, work.folder / "answer_scores")
    write_json(work.folder / "evaluate.json", numbers)
    write_json(work.folder / "history.json", round_history(row, others))
    work.publish({work.folder / name: path for name, path in made.items()})
    shown = {key: numbers[key] for key in list(numbers)[: 6 if judges else 4 : 2]}
    console.say(f"evaluate@{name}", **{key.removeprefix("eval/"): value for key, value in shown.items()})


if __name__ == "__main__":
    console.run(main)
