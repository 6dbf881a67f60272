"""What params.yaml says of the rewards as what a worker loads, and whether each loads, which needs no completion."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.rewards.names import DEFAULTS, REWARDS, Defaults
from gift.rewards.signature import wrong_settings
from gift.scoring.loading import Loaded, load, misfit, try_without_rows
from gift.scoring.pool import RewardPool
from gift.scoring.rows import GENERATION_PROMPT, Asked
from gift.scoring.settings import Reward, Score

USER_FOLDER = Path("rewards")
CALLED_WITH = ["prompts", "completions", "completion_ids"]


def load_plan(score: Score, asked: Asked | None) -> list[Loaded]:
    """What each worker has to load; a name that is neither one of ours nor a file in rewards/ is refused.

    A reward that is asked for none of these prompts is left out, and so needs none of its columns, and no sandbox.
    Where `asked` is None the columns are not known yet: nothing is said of them.
    """
    arguments = [*CALLED_WITH, *asked.columns, GENERATION_PROMPT] if asked else []
    plan = []
    for name, reward in score.rewards.items():
        key, settings = f"params.yaml: score.rewards.{name}", reward.settings
        file, function = _find(f"{key}.function: '{reward.function}'", reward)
        if asked and not asked.is_asked(name):
            continue
        default = DEFAULTS.get(reward.function, Defaults())
        if problem := default.needs():
            raise UserError(f"{key}: {problem}")
        if reward.signature == "verl":
            _check_verl(f"{key}.signature: verl", reward, file, asked)
        batch = default.batch if reward.batch is None else reward.batch
        in_groups = settings.get("mode") == "pairwise" and settings.get("against_column") is None
        if reward.function == "judge" and in_groups and batch != "group":
            raise UserError(
                f"{key}.batch: {batch}: must be group where a judge compares the completions of a group in pairs; or "
                "name a column to compare with (settings.against_column)"
            )
        seconds = reward.timeout_seconds or default.timeout_seconds
        loaded = Loaded(name, file, function, settings, arguments, reward.signature, batch, seconds, default.alone)
        plan.append(loaded)
    return plan


def _find(key: str, reward: Reward) -> tuple[str | None, str]:
    """The file (None for one of ours) and the function that `function` names."""
    file, colon, function = reward.function.rpartition(":")
    if not colon:
        if reward.function not in REWARDS:
            hint = did_you_mean(reward.function, list(REWARDS))
            if reward.function.endswith(".py"):
                functions = ", ".join(_functions(Path(reward.function))) or "none"
                raise UserError(f"{key}: names no function; write {reward.function}:<function> (it has {functions})")
            own = "One of your own is named rewards/<file>.py:<function>"
            raise UserError(f"{key}: unknown reward; {hint}{'' if hint[-1] == '?' else '.'} {own}")
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


def _functions(file: Path) -> list[str]:
    """The names of the functions that a file defines, without running it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []
    return [each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]


def _check_verl(key: str, reward: Reward, file: str | None, asked: Asked | None) -> None:
    """verl's signature is for functions of the user, and needs verl's columns."""
    if file is None:
        raise UserError(f"{key}: {reward.function} is one of ours and has TRL's signature; remove the key")
    if asked is None:
        return
    structs = {field.name: field.type for field in asked.table.schema if pa.types.is_struct(field.type)}
    truths = [*asked.columns, *(field.name for field in structs.get("reward_model", ()))]
    missing = None
    if "data_source" not in asked.columns:
        missing = "data_source"
    elif "ground_truth" not in truths:
        missing = "reward_model.ground_truth or ground_truth"
    if missing:
        raise UserError(
            f"{key}: the prompts table has no column {missing}; it has {', '.join(asked.columns)}. Name the source's "
            "column in prepare.columns"
        )


def check_rewards(score: Score, judges: Sequence[str], train: pa.Table, held_out: pa.Table) -> list[Loaded]:
    """Refuse, in their words, what `score` would refuse of `train`, and `evaluate` of `held_out` with these judges.

    Functions are loaded in a worker, as there. One that is `alone` is not, for it holds a model or asks a server: its
    settings and columns are checked without either. Returns the different loads, one that both tables ask for once.
    """
    asked = Asked(score, train)
    asked.refuse_useless()
    first = load_plan(score, asked)
    _load(first, score)
    try:
        asked = Asked(score, held_out)
        if judges:
            asked.correct(judges)
        second = [reward for reward in load_plan(score, asked) if reward not in first]
        _load(second, score)
    except UserError as error:
        raise UserError(f"{error.message} (eval prompts)") from None
    return first + second


def _load(plan: list[Loaded], score: Score) -> None:
    for reward in plan:
        if reward.alone:  # a judge is called without rows, where it asks nothing; a model would be opened
            is_judge = reward.function == "judge"
            problem = load(reward, {}) if is_judge else misfit(reward, REWARDS[reward.function])
            if problem:
                raise UserError(f"params.yaml: score.rewards.{reward.name}.{problem}")
    with RewardPool([each for each in plan if not each.alone], 1, score.timeout_seconds, score.memory_gib) as pool:
        pool.load()


def settings_problems(score: Score) -> Iterator[str]:
    """What is wrong before the columns are known: of ours the settings; a judge is tried on columns that it names."""
    for reward in load_plan(score, None):
        function = REWARDS.get(reward.function) if reward.file is None else None
        wrong = function and wrong_settings(function, reward.settings)
        if function and not wrong and reward.function == "judge":
            named = [reward.settings.get(key) for key in ("reference_column", "against_column")]
            columns = [*CALLED_WITH, "prompt_id", *dict.fromkeys(filter(None, named))]
            wrong = try_without_rows(replace(reward, arguments=columns), function)
        for line in wrong.split("\n       ") if wrong else ():
            yield f"params.yaml: score.rewards.{reward.name}.{line}"
