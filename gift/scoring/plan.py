"""What params.yaml says of the rewards as what a worker loads: which function, how it is called, and with what."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.rewards.names import DEFAULTS, REWARDS, Defaults
from gift.rewards.verl import missing_columns
from gift.scoring.asked import Asked
from gift.scoring.loading import Loaded
from gift.scoring.rows import Prompts
from gift.scoring.settings import Reward, Score

USER_FOLDER = Path("rewards")


def load_plan(score: Score, prompts: pa.Table | None) -> list[Loaded]:
    """What each worker has to load; a name that is neither one of ours nor a file in rewards/ is refused.

    A reward that is asked for none of these prompts is left out, and so needs none of its columns, and no sandbox.
    Where `prompts` is None the columns are not known yet: nothing is said of them.
    """
    table = None if prompts is None else Prompts(prompts)
    asked = None if table is None else Asked(score, table)
    plan = []
    for name, reward in score.rewards.items():
        file, function = _find(name, reward)
        if asked and not asked.is_asked(name):
            continue
        default = DEFAULTS.get(reward.function, Defaults())
        if problem := default.needs():
            raise UserError(f"params.yaml: score.rewards.{name}: {problem}")
        if reward.signature == "verl":
            _check_verl(name, reward, file, table)
        batch = default.batch if reward.batch is None else reward.batch
        if reward.function == "judge" and _compares_in_groups(reward.settings) and batch != "group":
            raise UserError(
                f"params.yaml: score.rewards.{name}.batch: {batch}: must be group where a judge compares the "
                "completions of a group in pairs; or name a column to compare with (settings.against_column)"
            )
        plan.append(
            Loaded(
                name,
                file,
                function,
                reward.settings,
                table.arguments() if table else [],
                signature=reward.signature,
                batch=batch,
                timeout_seconds=reward.timeout_seconds or default.timeout_seconds,
                alone=default.alone,
            )
        )
    return plan


def _compares_in_groups(settings: dict[str, Any]) -> bool:
    return settings.get("mode") == "pairwise" and settings.get("against_column") is None


def _find(name: str, reward: Reward) -> tuple[str | None, str]:
    """The file (None for one of ours) and the function that `function` names."""
    key = f"params.yaml: score.rewards.{name}.function: '{reward.function}'"
    file, colon, function = reward.function.rpartition(":")
    if not colon:
        if reward.function not in REWARDS:
            hint = did_you_mean(reward.function, list(REWARDS))
            raise UserError(f"{key}: unknown reward; {hint} One of your own is named rewards/<file>.py:<function>")
        return None, reward.function
    path = Path(file)
    if path.suffix != ".py" or not function.isidentifier():
        raise UserError(f"{key}: must be rewards/<file>.py:<function>")
    if not path.resolve().is_relative_to(USER_FOLDER.resolve()):
        raise UserError(
            f"{key}: must lie in the project's folder rewards/, which DVC watches for changes; move it there"
        )
    if not path.is_file():
        there = ", ".join(sorted(str(each) for each in USER_FOLDER.rglob("*.py"))) or "nothing"
        raise UserError(f"{key}: no such file; in rewards/ there is {there}")
    return file, function


def _check_verl(name: str, reward: Reward, file: str | None, table: Prompts | None) -> None:
    """verl's signature is for functions of the user, and needs verl's columns."""
    key = f"params.yaml: score.rewards.{name}.signature: verl"
    if file is None:
        raise UserError(f"{key}: {reward.function} is one of ours and has TRL's signature; remove the key")
    columns = table.fields() if table else {}
    missing = missing_columns(columns) if table else None
    if missing:
        there = ", ".join(column for column in columns if column != "prompts")
        raise UserError(
            f"{key}: the prompts table has no column {missing}; it has {there}. Name the source's column in "
            "prepare.columns"
        )
