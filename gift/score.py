"""Rollouts to the scores table, part by part: every reward function on every row; a failed reward is null, never 0."""

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.console import Progress
from gift.errors import UserError
from gift.params import Reward, Score
from gift.reward_pool import RewardPool
from gift.reward_worker import Loaded, Outcome
from gift.rewards.names import CHECKS, REWARDS
from gift.tables.parquet import part_name, part_paths
from gift.tables.prompts import prompt_column
from gift.tables.schemas import (
    ROLLOUTS,
    check_rollouts,
    check_same_rows,
    check_scores,
    read_part,
    scores_schema,
    write_part,
)

FAILED = ("timeout", "error", "invalid")
NUM_EXAMPLES = 5
USER_FOLDER = Path("rewards")


@dataclass(frozen=True)
class Slowest:
    """The call that took longest: for people, in no table."""

    seconds: float = 0.0
    name: str = ""


@dataclass
class _Failures:
    """Failed calls of each function, against the limit over the whole table."""

    score: Score
    num_rows: int
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reward: str, prompt_id: str, sample: int, status: str, message: str | None) -> None:
        """Count a failure; the stage stops as soon as no later row could bring the share back under the limit."""
        self.counts[reward] = self.counts.get(reward, 0) + 1
        self.examples.setdefault(reward, []).append(f"prompt_id={prompt_id}, sample={sample}: {status}: {message}")
        limit = self.score.max_failed_share
        if self.counts[reward] <= limit * self.num_rows:
            return
        rows = sorted(self.examples[reward])[:NUM_EXAMPLES]
        raise UserError(
            f"score.rewards.{reward} ({self.score.rewards[reward].function}) failed for {self.counts[reward]} of "
            f"{self.num_rows} completions; score.max_failed_share allows {limit:g} of them:\n       "
            + "\n       ".join(rows)
            + f"\n       Nothing was published. Mend the function, or raise score.max_failed_share or timeout_seconds. "
            f"The finished parts are in {self.folder}: remove it to score them again with nothing changed"
        )


def score_parts(
    folder: Path, rollouts: Path, prompts: pa.Table, score: Score, workers: int, metadata: dict[str, Any], label: str
) -> Slowest:
    """Score the rollouts into `folder`, part by part as they are cut; parts that are there already are kept.

    The same rows give the same table whatever the number of `workers`. Raises where one function fails for more than
    `max_failed_share` of all completions.
    """
    schema = scores_schema(score.rewards)
    parts = [(path, read_part(path, ROLLOUTS, check_rollouts)[0]) for path in part_paths(rollouts)]
    failures = _Failures(score, sum(table.num_rows for _, table in parts), folder)
    rewards = load_plan(score, prompts)
    arguments = _prompt_arguments(prompts)
    finished = {index for index in range(len(parts)) if (folder / part_name(index)).exists()}
    for index in finished:
        table, _ = read_part(folder / part_name(index), schema, check_scores)
        check_same_rows(table, parts[index][1], folder / part_name(index))
        _count_failures(table, failures)
    slowest = Slowest()
    done = sum(parts[index][1].num_rows for index in finished)
    with (
        Progress(label, failures.num_rows, "completions", done) as progress,
        RewardPool(rewards, workers, score.timeout_seconds) as pool,
    ):
        for index, (path, part) in enumerate(parts):
            if index in finished:
                continue
            rows = _rows(part, arguments, path)
            table, slow = _score_part(pool, part, rows, score, failures, progress)
            slowest = max(slowest, slow, key=lambda each: each.seconds)
            write_part(folder, index, table, schema, check_scores, metadata)
    return slowest


def load_plan(score: Score, prompts: pa.Table) -> list[Loaded]:
    """What each worker has to load; a name that is neither one of ours nor a file in rewards/ is refused."""
    columns = [name for name in prompts.column_names if name != prompt_column(prompts)]
    arguments = ["prompts", "completions", "completion_ids", *columns]
    plan = []
    for name, reward in score.rewards.items():
        file, function = _find(name, reward)
        if file is None and function in CHECKS:
            CHECKS[function](f"params.yaml: score.rewards.{name}")
        plan.append(Loaded(name, file, function, reward.settings, arguments))
    return plan


def _find(name: str, reward: Reward) -> tuple[str | None, str]:
    """The file (None for one of ours) and the function that `function` names."""
    key = f"params.yaml: score.rewards.{name}.function: '{reward.function}'"
    file, colon, function = reward.function.rpartition(":")
    if not colon:
        if reward.function not in REWARDS:
            close = difflib.get_close_matches(reward.function, REWARDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(REWARDS)}"
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


def _prompt_arguments(prompts: pa.Table) -> dict[str, dict[str, Any]]:
    """For each prompt_id the arguments that come from its row: `prompts`, then every column under its own name."""
    prompt = prompt_column(prompts)
    rows = prompts.rename_columns(["prompts" if name == prompt else name for name in prompts.column_names]).to_pylist()
    return {row["prompt_id"]: row for row in rows}


def _rows(part: pa.Table, arguments: dict[str, dict[str, Any]], path: Path) -> list[dict[str, list[Any]]]:
    """The arguments of each row's calls, as lists of one; a chat's completion is a list of messages, as in TRL."""
    rows = []
    columns = [part[name].to_pylist() for name in ("prompt_id", "completion", "completion_ids")]
    for row, (prompt_id, completion, completion_ids) in enumerate(zip(*columns, strict=True)):
        if prompt_id not in arguments:
            raise UserError(
                f"{path}: row {row}: prompt_id={prompt_id} is not in the prompts table; the rollouts were sampled from "
                "another one: run `dvc repro`"
            )
        known = arguments[prompt_id]
        is_chat = not isinstance(known["prompts"], str)
        answer = [{"role": "assistant", "content": completion}] if is_chat else completion
        each = {**known, "completions": answer, "completion_ids": completion_ids}
        rows.append({name: [value] for name, value in each.items()})
    return rows


def _score_part(
    pool: RewardPool,
    part: pa.Table,
    rows: list[dict[str, list[Any]]],
    score: Score,
    failures: _Failures,
    progress: Progress,
) -> tuple[pa.Table, Slowest]:
    """The scores of a part's rows, and its slowest call."""
    prompt_ids, samples = part["prompt_id"].to_pylist(), part["sample"].to_pylist()
    outcomes: list[dict[str, Outcome]] = [{} for _ in rows]
    slowest = Slowest()
    calls = [(index, name, row) for index, row in enumerate(rows) for name in score.rewards]
    for index, name, outcome in pool.run(calls):
        outcomes[index][name] = outcome
        if outcome.status in FAILED:
            failures.add(name, prompt_ids[index], samples[index], outcome.status, outcome.message)
        if outcome.seconds > slowest.seconds:
            slowest = Slowest(outcome.seconds, f"{name} of prompt_id={prompt_ids[index]}, sample={samples[index]}")
        if len(outcomes[index]) == len(score.rewards):
            progress.advance()
    columns: dict[str, list[Any]] = {
        "prompt_id": prompt_ids,
        "sample": samples,
        "reward": [total_reward(score.rewards, row) for row in outcomes],
    }
    for name in score.rewards:
        columns[name] = [row[name].value for row in outcomes]
        columns[f"{name}_status"] = [row[name].status for row in outcomes]
        columns[f"{name}_message"] = [row[name].message for row in outcomes]
    return pa.table(columns, schema=scores_schema(score.rewards)), slowest


def total_reward(rewards: dict[str, Reward], outcomes: dict[str, Outcome]) -> float | None:
    """The weighted sum of the components that have a value; null where one failed or all abstained."""
    if any(outcome.status in FAILED for outcome in outcomes.values()):
        return None
    values = [(rewards[name].weight, outcome.value) for name, outcome in outcomes.items()]
    products = [weight * value for weight, value in values if value is not None]
    return math.fsum(products) if products else None


def _count_failures(table: pa.Table, failures: _Failures) -> None:
    for name in failures.score.rewards:
        columns = (table[column].to_pylist() for column in ("prompt_id", "sample", f"{name}_status", f"{name}_message"))
        for prompt_id, sample, status, message in zip(*columns, strict=True):
            if status in FAILED:
                failures.add(name, prompt_id, sample, status, message)
