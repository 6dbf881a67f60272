"""Rollouts to the scores table, part by part: every reward function on every row; a failed reward is null, never 0."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.console import Progress
from gift.project.params import settings_of
from gift.project.work import Work, file_digest, tree_digest
from gift.scoring.asked import NOT_ASKED, Asked
from gift.scoring.cache import ROOT, RewardCache, row_keys
from gift.scoring.failures import FAILED, Failures
from gift.scoring.loading import Loaded
from gift.scoring.plan import USER_FOLDER, load_plan
from gift.scoring.rows import PartRows, Prompts
from gift.scoring.seconds import Seconds, Slowest
from gift.scoring.settings import Reward, Score, ScoreLaunch
from gift.scoring.workers.pool import Call, RewardPool
from gift.scoring.workers.worker import Outcome
from gift.tables.parquet import part_name, part_paths, read_file, read_footer
from gift.tables.parts import (
    ROLLOUTS,
    check_key,
    check_rollouts,
    check_same_rows,
    check_scores,
    read_part,
    read_parts,
    scores_schema,
    write_part,
)
from gift.tables.prompts import read_prompts


@dataclass(frozen=True)
class Scored:
    """A table of completions and its scores: two narrow tables with the same rows, and notes for people.

    `rows` has prompt_id, sample, num_tokens and finish_reason; `scores` is the scores table without its messages;
    `num_asked` has the completions that each reward was asked for.
    """

    rows: pa.Table
    scores: pa.Table
    slowest: Slowest
    num_reused: int
    num_asked: dict[str, int]


@dataclass(frozen=True)
class Opened:
    """A stage that scores: its work folder, the scores in it, the table that was scored (metadata) and its prompts."""

    work: Work
    folder: Path
    source: dict[str, Any]
    prompts: pa.Table
    scored: Scored


def score_table(
    label: str,
    rollouts: Path,
    prompts: Path,
    score: Score,
    launch: ScoreLaunch,
    refuse: Callable[[Asked], object],
) -> Opened:
    """Score a table of completions in the work folder of `label`, such as score@r1.

    `refuse` is the stage's own law on which rewards are asked for which prompts; it is called before any function.
    """
    _, source = read_footer(part_paths(rollouts)[0])
    asked, _ = read_prompts(prompts)
    refuse(Asked(score, Prompts(asked)))
    metadata = {
        "artifact": "scores",
        "policy": source["policy"],
        "rewards": {
            name: {"weight": reward.weight, "only_if": reward.only_if} for name, reward in score.rewards.items()
        },
        "settings": settings_of(score),
    }
    inputs = {
        **metadata,
        "rollouts": tree_digest(rollouts),
        "prompts": file_digest(prompts),
        "rewards": tree_digest(USER_FOLDER),
    }
    work = Work(label, inputs)
    folder = work.folder / "scores"
    scored = score_parts(
        folder, rollouts, asked, score, launch.workers, metadata, label, launch.judge_endpoint, cache=ROOT
    )
    return Opened(work, folder, source, asked, scored)


def score_parts(
    folder: Path,
    rollouts: Path,
    prompts: pa.Table,
    score: Score,
    workers: int,
    metadata: dict[str, Any],
    label: str,
    judge_endpoint: str | None = None,
    cache: Path | None = None,
) -> Scored:
    """Score the rollouts into `folder`, part by part as they are cut; parts that are there already are kept.

    The same rows give the same table whatever the number of `workers`. Values in `cache` are taken from there. All
    parts are checked before a function is called; one is in memory at a time. Raises where one function fails for more
    than `max_failed_share` of all completions.
    """
    known, plan = Prompts(prompts), load_plan(score, prompts)
    paths, parts = part_paths(rollouts), _checked(rollouts, known)
    rows = pa.concat_tables(parts)
    check_key(rows, rollouts)
    asked, prompt_ids = Asked(score, known), rows["prompt_id"].to_pylist()
    num_asked = {name: len(asked.rows(name, prompt_ids)) for name in score.rewards}
    failures = Failures(score, num_asked, folder)
    schema, messages = scores_schema(score.rewards), [f"{name}_message" for name in score.rewards]
    scores: dict[int, pa.Table] = {}
    for index, part in enumerate(parts):
        done = folder / part_name(index)
        if done.exists():
            table, _ = read_part(done, schema, check_scores)
            check_same_rows(table, part, done)
            _count_failures(table, failures)
            scores[index] = table.drop_columns(messages)
    with (
        Progress(label, rows.num_rows, "completions", sum(table.num_rows for table in scores.values())) as progress,
        RewardPool(plan, workers, score.timeout_seconds, score.memory_gib, judge_endpoint) as pool,
    ):
        values = RewardCache(cache, label, plan, USER_FOLDER) if cache else None
        scorer = _Scorer(
            score, plan, asked, pool, values, Seconds(cache and cache.with_name("seconds"), label), failures, progress
        )
        for index, path in enumerate(paths):
            if index not in scores:
                part, source = read_file(path, ["prompt_id", "sample", "completion", "completion_ids"])
                table = scorer.score(index, PartRows(part, known, source.get("generation_prompt", "")))
                write_part(folder, index, table, schema, check_scores, metadata)
                scores[index] = table.drop_columns(messages)
                del part, table  # before the next is read
    table = pa.concat_tables([scores[index] for index in sorted(scores)])
    return Scored(rows, table, scorer.seconds.slowest, scorer.num_reused, num_asked)


def _checked(rollouts: Path, known: Prompts) -> list[pa.Table]:
    """The narrow rows of every part; what is wrong in any of them is refused before a row is scored."""
    narrow: list[pa.Table] = []
    for path, part, _ in read_parts(rollouts, ROLLOUTS, check_rollouts):
        known.check_asked(part, path)
        narrow.append(_narrow(part))
        del part  # before the next is read
    return narrow


def _narrow(part: pa.Table) -> pa.Table:
    keys = part.select(["prompt_id", "sample", "finish_reason"])
    return keys.append_column("num_tokens", pc.list_value_length(part["completion_ids"]))


@dataclass
class _Scorer:
    """What scores one part after another."""

    settings: Score
    plan: list[Loaded]
    asked: Asked
    pool: RewardPool
    cache: RewardCache | None
    seconds: Seconds
    failures: Failures
    progress: Progress
    num_reused: int = 0

    def score(self, index: int, rows: PartRows) -> pa.Table:
        """The scores of a part's rows; what has ended before the stage fails is kept for the next run."""
        outcomes: dict[str, dict[int, Outcome]] = {reward.name: {} for reward in self.plan}
        numbers = range(len(rows.prompt_ids))
        asked = {name: self.asked.rows(name, rows.prompt_ids) for name in self.settings.rewards}
        others = {name: sorted(set(numbers).difference(own)) for name, own in asked.items()}
        spans = {reward.name: rows.spans(reward.batch, asked[reward.name]) for reward in self.plan}
        keys: dict[str, list[bytes]] = {}
        if self.cache:
            digests = rows.digests()
            for reward in self.plan:  # what is kept of rows that are not asked for now is kept on
                name, unasked = reward.name, rows.spans(reward.batch, others[reward.name])
                keys[name] = row_keys(digests, [*spans[name], *unasked])
                outcomes[name] = self.cache.read(name, index, keys[name])
        calls, called = _missing(self.plan, spans, outcomes)
        self.num_reused += sum(len(asked[name]) - len(each) for name, each in called.items())
        try:
            self._call(rows, calls, called, outcomes)
        finally:
            for name in keys:
                if self.cache and called[name]:
                    self.cache.write(name, index, keys[name], outcomes[name])
            ended = {name: [row for row in each if row in outcomes[name]] for name, each in called.items()}
            took = {name: {row: outcomes[name][row].seconds for row in each} for name, each in ended.items()}
            self.seconds.write(index, rows, took)
        for name, each in others.items():
            outcomes[name] = {**outcomes.get(name, {}), **dict.fromkeys(each, NOT_ASKED)}
        return self._table(rows, outcomes)

    def _call(
        self,
        rows: PartRows,
        calls: list[Call],
        called: dict[str, list[int]],
        outcomes: dict[str, dict[int, Outcome]],
    ) -> None:
        """Make the calls; add their outcomes as they come."""
        prompt_ids, samples = rows.prompt_ids, rows.samples
        num_open = Counter(row for each in called.values() for row in each)
        self.progress.advance(len(prompt_ids) - len(num_open))
        for number, name, outcome in self.pool.run(calls, rows.arguments):
            row = called[name][number]
            outcomes[name][row] = outcome
            if outcome.status in FAILED:
                self.failures.add(name, prompt_ids[row], samples[row], outcome.status, outcome.message)
            num_open[row] -= 1
            if not num_open[row]:
                self.progress.advance()

    def _table(self, rows: PartRows, outcomes: dict[str, dict[int, Outcome]]) -> pa.Table:
        numbers = range(len(rows.prompt_ids))
        by_row = [{name: each[row] for name, each in outcomes.items()} for row in numbers]
        columns: dict[str, list[Any]] = {
            "prompt_id": rows.prompt_ids,
            "sample": rows.samples,
            "reward": [total_reward(self.settings.rewards, row) for row in by_row],
        }
        for name in self.settings.rewards:
            columns[name] = [row[name].value for row in by_row]
            columns[f"{name}_status"] = [row[name].status for row in by_row]
            columns[f"{name}_message"] = [row[name].message for row in by_row]
        return pa.table(columns, schema=scores_schema(self.settings.rewards))


def _missing(
    plan: list[Loaded], spans: dict[str, list[list[int]]], outcomes: dict[str, dict[int, Outcome]]
) -> tuple[list[Call], dict[str, list[int]]]:
    """The calls for rows without an outcome, and each function's rows in the order of the pool's numbers.

    Of a group of which one row has no outcome all are called again. Functions of the same rows stand together.
    """
    calls: list[tuple[int, Call]] = []
    called: dict[str, list[int]] = {}
    for reward in plan:
        name, numbers = reward.name, called.setdefault(reward.name, [])
        for span in spans[name]:
            missing = [row for row in span if row not in outcomes[name]]
            if missing:
                asked = span if reward.batch == "group" else missing
                calls.append((asked[0], (len(numbers), name, asked)))
                numbers.extend(asked)
    return [call for _, call in sorted(calls, key=lambda each: each[0])], called


def total_reward(rewards: dict[str, Reward], outcomes: dict[str, Outcome]) -> float | None:
    """The weighted sum of the components that count; null where one failed or none counts.

    A component counts where it has a value and, with `only_if`, where the value of that other component is 1.
    """
    if any(outcome.status in FAILED for outcome in outcomes.values()):
        return None
    products = []
    for name, outcome in outcomes.items():
        gate = rewards[name].only_if
        if outcome.value is not None and (gate is None or outcomes[gate].value == 1):
            products.append(rewards[name].weight * outcome.value)
    return math.fsum(products) if products else None


def _count_failures(table: pa.Table, failures: Failures) -> None:
    for name in failures.score.rewards:
        columns = (table[column].to_pylist() for column in ("prompt_id", "sample", f"{name}_status", f"{name}_message"))
        for prompt_id, sample, status, message in zip(*columns, strict=True):
            if status in FAILED:
                failures.add(name, prompt_id, sample, status, message)
