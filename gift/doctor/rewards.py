"""Whether rewards load and are asked for the prompts, every prompt has one, and the weights can train."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from gift.doctor.findings import Finding, Theme
from gift.doctor.model import read_model
from gift.doctor.prompts import Prompts
from gift.doctor.whole import Params, Project
from gift.project.errors import UserError
from gift.rewards.judge_client import ENDPOINT
from gift.rewards.total import counting
from gift.scoring.plan import check_rewards, settings_problems
from gift.scoring.rows import Asked, Mask, column_values
from gift.tables.where import is_one_of

say = Theme("rewards")
REWARDS_KEY = "params.yaml: score.rewards"
# Of our functions those that give more than 0 and 1, so that none of them tells right from wrong.
GRADED = ("cosine_length", "judge", "length", "ngram_diversity", "overlong", "repetition", "reward_model")


def reward_findings(project: Project, prompts: Prompts | None) -> Iterator[Finding]:
    """What `check_rewards` would refuse where the columns are known, else what can be said without; and the weights."""
    params = project.params
    score, judges = params.score, params.evaluate.judges
    yield from _weight_findings(params)
    for name, reward in score.rewards.items():
        if reward.function == "judge" and not (project.launch.score.judge_endpoint or os.environ.get(ENDPOINT)):
            text = f"missing; score.rewards.{name} asks a judge there (docs/judges.md)"
            yield say.error(f"launch.yaml: score.judge_endpoint: {text}, such as http://127.0.0.1:8000/v1")
        folder = Path(str(reward.settings.get("model")))
        if reward.function == "reward_model" and folder.is_dir():
            try:
                read_model(folder)
            except UserError as error:
                yield from say.refused(error, f"{REWARDS_KEY}.{name}.settings.model: ")
    try:
        if prompts is None:
            yield from map(say.error, settings_problems(score))
            text = "not loaded: the columns that they get are not known before `prepare` has run"
            yield say.note(f"{REWARDS_KEY}: {text}")
            return
        plan = check_rewards(score, judges, prompts.train, prompts.eval)
    except UserError as error:
        yield from say.refused(error)
        return
    if here := [f"{each.name} ({score.rewards[each.name].function})" for each in plan if not each.alone]:
        yield say.ok(f"load with their settings and columns: {', '.join(here)}")
    if any(reward.where for reward in score.rewards.values()) or len(judges) > 1:
        yield from _asked_findings(params, prompts)


def _weight_findings(params: Params) -> Iterator[Finding]:
    rewards = params.score.rewards
    if not any(reward.weight for reward in rewards.values()):
        text = "every weight is 0: all rewards are equal, and no group can train; give one a weight"
        yield say.error(f"{REWARDS_KEY}: {text}")
    for name in params.evaluate.judges:
        if rewards[name].weight < 0:
            text = f"{rewards[name].weight:g}: trains away from what evaluate.correct counts as right"
            yield say.warning(f"{REWARDS_KEY}.{name}.weight: {text}")
        if rewards[name].function in GRADED:
            text = f"{name}: {rewards[name].function} is graded; it must be 1 where the answer is right, else 0"
            yield say.error(f"params.yaml: evaluate.correct: {text}")


def _asked_findings(params: Params, prompts: Prompts) -> Iterator[Finding]:
    """Values that no prompt has, and prompts on which nothing can train, or that no accuracy counts."""
    score, judges = params.score, params.evaluate.judges
    train, held_out = Asked(score, prompts.train), Asked(score, prompts.eval)
    counts = counting(train.masks, train.masks, score.rewards)
    weighted = [counts[name] for name, reward in score.rewards.items() if reward.weight]
    trains = np.logical_or.reduce(weighted) if weighted else np.ones(prompts.train.num_rows, dtype=bool)  # said already
    for name, reward in score.rewards.items():
        for column, wanted in reward.where.items():  # of a list, a misspelt one is missed by nobody else
            known = [*column_values(prompts.train[column]), *column_values(prompts.eval[column])]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if not any(is_one_of(each, value) for each in known):
                    text = f"{value!r}: no prompt has it, in train or eval; {train.hint(column, value)}"
                    yield say.warning(f"{REWARDS_KEY}.{name}.where.{column}: {text}")
    if not trains.all():
        text = (
            f"{_count(~trains, prompts.train, 'training')} are asked for by no reward with a weight: they are sampled, "
            "and nothing trains on them; filter them out, or give them a reward"
        )
        yield say.warning(f"{REWARDS_KEY}: {text}")
    if judges and not (judged := held_out.correct(judges)).all():
        text = f"{_count(~judged, prompts.eval, 'eval')} count in no accuracy"
        yield say.note(f"params.yaml: evaluate.correct: {text}")


def _count(mask: Mask, prompts: pa.Table, kind: str) -> str:
    """How many prompts, and the first of them."""
    first = prompts["prompt_id"][int(mask.argmax())].as_py()
    return f"{int(mask.sum()):,} of {len(mask):,} {kind} prompts (prompt_id={first} first)"
