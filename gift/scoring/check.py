"""Whether every reward loads for the prompts of training and of evaluation, which needs no completion of any."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from gift.project.errors import UserError
from gift.rewards.names import REWARDS
from gift.rewards.signature import wrong_settings
from gift.scoring.asked import Asked
from gift.scoring.loading import Loaded, misfit, try_without_rows
from gift.scoring.plan import load_plan
from gift.scoring.rows import Prompts
from gift.scoring.settings import Score
from gift.scoring.workers.pool import RewardPool


def check_rewards(score: Score, judges: Sequence[str], train: pa.Table, held_out: pa.Table) -> list[Loaded]:
    """Refuse, in their words, what `score` would refuse of `train`, and `evaluate` of `held_out` with these judges.

    Functions are loaded in a worker, as there. One that is `alone` is not, for it holds a model or asks a server: its
    settings and columns are checked without either. Returns the different loads, one that both tables ask for once.
    Raises `UserError`.
    """
    Asked(score, Prompts(train)).refuse_useless()
    first = load_plan(score, train)
    _load(first, score)
    try:
        asked = Asked(score, Prompts(held_out))
        if judges:
            asked.correct(judges)
        second = [reward for reward in load_plan(score, held_out) if reward not in first]
        _load(second, score)
    except UserError as error:
        raise UserError(f"{error.message} (eval prompts)") from None
    return first + second


def settings_problems(score: Score) -> Iterator[str]:
    """What is wrong before the columns are known: of ours the settings; a judge is tried on columns that it names."""
    for reward in load_plan(score, None):
        function = REWARDS.get(reward.function) if reward.file is None else None
        wrong = function and wrong_settings(function, reward.settings)
        if function and not wrong and reward.function == "judge":
            named = [reward.settings.get(key) for key in ("reference_column", "against_column")]
            columns = ["prompts", "completions", "completion_ids", "prompt_id", *dict.fromkeys(filter(None, named))]
            wrong = try_without_rows(replace(reward, arguments=columns), function)
        for line in wrong.split("\n       ") if wrong else ():
            yield f"params.yaml: score.rewards.{reward.name}.{line}"


def _load(plan: list[Loaded], score: Score) -> None:
    for reward in plan:
        problem = misfit(reward, REWARDS[reward.function]) if reward.alone else None
        if reward.alone and reward.function == "judge" and not problem:  # called without rows it asks nothing
            problem = try_without_rows(reward, REWARDS[reward.function])
        if problem:
            raise UserError(f"params.yaml: score.rewards.{reward.name}.{problem}")
    with RewardPool([each for each in plan if not each.alone], 1, score.timeout_seconds, score.memory_gib) as pool:
        pool.load()
