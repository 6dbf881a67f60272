"""Check that every reward loads for the prompts, before anything is sampled; the output says nothing but ok."""

from pathlib import Path

import click

from gift.project import console
from gift.project.code import check_code
from gift.project.door import check_unchanged
from gift.project.params import read_section
from gift.project.work import refuse_existing, write_text
from gift.sampling.settings import Evaluate
from gift.scoring.plan import check_rewards
from gift.scoring.settings import Score, refuse_judges
from gift.tables.prompts import read_prompts


@click.command()
@click.argument("train", type=Path)
@click.argument("evaluation", type=Path)
@click.argument("out", type=Path)
def main(train: Path, evaluation: Path, out: Path) -> None:
    """OUT has the same bytes whatever the rewards, so that nothing is sampled again when they change."""
    console.quiet()
    refuse_existing(out)
    code = check_code("check_rewards")
    score, evaluate = read_section("score", Score), read_section("evaluate", Evaluate)
    refuse_judges(evaluate.judges, score)
    plan = check_rewards(score, evaluate.judges, read_prompts(train)[0], read_prompts(evaluation)[0])
    check_unchanged("check_rewards", code)
    write_text(out, "ok\n")
    loaded = dict.fromkeys(reward.name for reward in plan if not reward.alone)
    left = dict.fromkeys(reward.name for reward in plan if reward.alone)
    console.say(
        "check_rewards", loaded=", ".join(loaded) or "none", **({"not_loaded": ", ".join(left)} if left else {})
    )


if __name__ == "__main__":
    console.run(main)
