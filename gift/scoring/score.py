"""Rollouts to scores and notes, part by part: every reward function on every row; a failed reward is null, never 0."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.code import code_of
from gift.project.console import Progress
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.work import Work, tree_digest
from gift.rewards.total import totals
from gift.scoring.cache import ROOT, RewardCache, row_keys
from gift.scoring.loading import Loaded
from gift.scoring.looks import calls_again, changed, is_change
from gift.scoring.metrics import FAILED, Failures
from gift.scoring.plan import USER_FOLDER, load_plan
from gift.scoring.pool import RewardPool
from gift.scoring.process import Call
from gift.scoring.rows import NOT_ASKED, Asked, PartRows
from gift.scoring.settings import Reward, Score, ScoreLaunch
from gift.scoring.worker import MOST, Outcome
from gift.tables.counting import rewards_digest, what_counts
from gift.tables.parquet import part_name, part_paths, read_file, read_footer
from gift.tables.parts import Law, check_key, check_same_rows, read_part, read_parts, write_part
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_notes, check_scores, everything, notes_schema, scores_schema


@dataclass(frozen=True)
class Scored:
    """A table of completions and its scores: two narrow tables with the same rows, and notes for people."""

    rows: pa.Table  # prompt_id, sample, num_tokens and finish_reason
    scores: pa.Table  # the values and statuses of all rewards
    slowest: str  # the call that took longest
    num_reused: int
    num_asked: dict[str, int]  # the completions that each reward was asked for
    source: dict[str, Any]  # the metadata of the completions


def score_table(
    label: str, rollouts: Path, prompts: Path, table: pa.Table, score: Score, launch: ScoreLaunch
) -> tuple[Work, Scored]:
    """Score completions into `scores` of the work folder of `label` (as score@r1); `table` is what `prompts` holds."""
    _, source = read_footer(part_paths(rollouts)[0])
    metadata = {"policy": source["policy"], "rollouts": tree_digest(rollouts)}
    files = {"prompts": file_digest(prompts), "rewards": tree_digest(USER_FOLDER), "settings": settings_of(score)}
    counting = {"counting": rewards_digest([settings_of(score)], code_of("score"))}
    work = Work(label, metadata | files | counting)
    folder, endpoint = work.folder / "everything", launch.judge_endpoint
    return work, score_parts(folder, rollouts, table, score, launch.workers, metadata, label, endpoint, cache=ROOT)


def write_tables(everything: Path, score: Score, scores: Path, notes: Path) -> None:
    """Cut the parts of `score_parts` in two tables: what an update may read, and the rest.

    The bytes of `scores` are the same whatever is watched beside them, and whatever limits the calls had.
    """
    counting = score.counting
    watched = [name for name in score.rewards if name not in counting]
    terms = {name: {"weight": reward.weight, "only_if": reward.only_if} for name, reward in counting.items()}
    tables: list[tuple[Path, pa.Schema, Law, dict[str, Any]]] = [
        (
            scores,
            scores_schema(counting),
            check_scores,
            {"rewards": terms, "settings": what_counts(settings_of(score))},
        ),
        (notes, notes_schema(score.rewards, watched), check_notes, {"settings": settings_of(score)}),
    ]
    for folder, schema, law, own in tables:
        _cut(everything, folder, schema, law, own)


def write_answer_scores(parts: Path, score: Score, judges: Sequence[str], out: Path) -> None:
    """The parts of `score_parts` as a table of their own; its metadata say which rewards tell what is right."""
    own = {"settings": settings_of(score), "correct": list(judges)}
    _cut(parts, out, everything(score.rewards), check_scores, own)


def _cut(parts: Path, folder: Path, schema: pa.Schema, law: Law, own: dict[str, Any]) -> None:
    """A table of some columns of the parts, with metadata of its own beside theirs."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
    for index, path in enumerate(part_paths(parts)):
        table, metadata = read_file(path)
        write_part(folder, index, table.select(schema.names), schema, law, {"artifact": folder.name, **metadata, **own})


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

    The same rows give the same table whatever the number of `workers`. Values in `cache` are taken from there. The keys
    of all rows are checked before a function is called; then a part is read once, and one is in memory at a time.
    Raises where one function fails for more than `max_failed_share` of all completions.
    """
    asked = Asked(score, prompts)
    plan = load_plan(score, asked)
    prompt_ids = _prompt_ids(rollouts, asked)
    num_asked = {name: len(asked.rows(name, prompt_ids)) for name in score.rewards}
    failures, schema = Failures(score, num_asked, folder), everything(score.rewards)
    num_done = sum(read_file(path, ["sample"])[0].num_rows for path in folder.glob("*.parquet"))
    rows: list[pa.Table] = []
    scores: list[pa.Table] = []
    with (
        Progress(label, len(prompt_ids), "completions", num_done) as progress,
        RewardPool(plan, workers, score.timeout_seconds, score.memory_gib, judge_endpoint) as pool,
    ):
        kept = RewardCache(cache, label, plan, USER_FOLDER) if cache else None
        scorer = _Scorer(plan, asked, pool, kept, failures, progress)
        for _, part, source in read_parts(rollouts, ROLLOUTS, check_rollouts):
            index = len(scores)  # enumerate would keep the part while the next is read
            done = folder / part_name(index)
            if done.exists():
                table, _ = read_part(done, schema, check_scores)
                check_same_rows(table, part, done)
                failures.add_table(table)
            else:
                table = scorer.score(index, PartRows(part, asked, source.get("generation_prompt", "")))
                write_part(folder, index, table, schema, check_scores, metadata)
            scores.append(table.drop_columns([f"{name}_message" for name in score.rewards]))
            narrow = part.select(["prompt_id", "sample", "finish_reason"])
            rows.append(narrow.append_column("num_tokens", pc.list_value_length(part["completion_ids"])))
            del part, table  # before the next is read
    tables = pa.concat_tables(rows), pa.concat_tables(scores)
    return Scored(*tables, scorer.slowest, scorer.num_reused, num_asked, source)


def _prompt_ids(rollouts: Path, asked: Asked) -> list[str]:
    """The prompt of every row; keys that are not in order, and prompts that are not in the table, are refused."""
    keys: list[pa.Table] = []
    for path in part_paths(rollouts):
        keys.append(read_file(path, ["prompt_id", "sample"])[0])
        check_key(keys[-1], path)
        for row, prompt_id in enumerate(keys[-1]["prompt_id"].to_pylist()):
            if prompt_id not in asked.row_of:
                raise UserError(
                    f"{path}: row {row}: prompt_id={prompt_id} is not in the prompts table; the rollouts were sampled "
                    "from another one: run `dvc repro`"
                )
    table = pa.concat_tables(keys)
    check_key(table, rollouts)
    return list(table["prompt_id"].to_pylist())


@dataclass
class _Scorer:
    """What scores one part after another."""

    plan: list[Loaded]
    asked: Asked
    pool: RewardPool
    cache: RewardCache | None
    failures: Failures
    progress: Progress
    num_reused: int = 0
    slowest: str = "none called"
    slowest_seconds: float = 0.0
    has_looked: bool = False

    def score(self, index: int, rows: PartRows) -> pa.Table:
        """The scores of a part's rows; what has ended before the stage fails is kept for the next run."""
        everyone = range(len(rows.prompt_ids))
        own = {name: self.asked.rows(name, rows.prompt_ids) for name in self.asked.score.rewards}
        others = {name: sorted(set(everyone).difference(each)) for name, each in own.items()}
        outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in own}
        keys: dict[str, list[bytes]] = {}
        calls: list[Call] = []
        digests = rows.digests() if self.cache else []
        for reward in self.plan:
            name, spans = reward.name, rows.spans(reward.batch, own[reward.name])
            if self.cache:  # what is kept of rows that are not asked for now is kept on
                keys[name] = row_keys(digests, [*spans, *rows.spans(reward.batch, others[name])])
                outcomes[name] = self.cache.read(name, index, keys[name])
            missing = [[row for row in span if row not in outcomes[name]] for span in spans]
            new = [span if reward.batch == "group" else left for span, left in zip(spans, missing, strict=True) if left]
            calls += [(name, each) for each in new]
            self.num_reused += len(own[name]) - sum(map(len, new))
        calls.sort(key=lambda call: call[1][0])  # functions of the same rows stand together
        try:
            self._call(rows, calls, outcomes)
            self._look_again(rows, calls, outcomes)
        finally:
            if self.cache:
                for name in {name for name, _ in calls}:
                    self.cache.write(name, index, keys[name], outcomes[name])
        for name, each in others.items():
            outcomes[name] |= dict.fromkeys(each, NOT_ASKED)
        rewards, counting = self.asked.score.rewards, self.asked.score.counting
        by_name = {name: [outcomes[name][row] for row in everyone] for name in rewards}
        totals = total_rewards(counting, {name: by_name[name] for name in counting})
        for row, total in enumerate(totals):
            if total is not None and abs(total) > MOST:
                raise UserError(
                    f"score.rewards: {rows.name(row)}: the weighted sum is {total:g}; it must lie between -{MOST:g} "
                    f"and {MOST:g}, as the update squares and adds rewards in float32: lower the weights"
                )
        columns: dict[str, list[Any]] = {"prompt_id": rows.prompt_ids, "sample": rows.samples, "reward": totals}
        for name, made in by_name.items():
            columns[name] = [outcome.value for outcome in made]
            columns[f"{name}_status"] = [outcome.status for outcome in made]
            columns[f"{name}_message"] = [outcome.message for outcome in made]
        return pa.table(columns, schema=everything(rewards))

    def _look_again(self, rows: PartRows, calls: list[Call], outcomes: dict[str, dict[int, Outcome]]) -> None:
        """Once, on the first part that is not kept: a value that is kept must be what the function says every time."""
        if self.has_looked or not calls:
            return
        self.has_looked = True
        for name, row, second in self.pool.run(calls_again(self.plan, calls, outcomes), rows.arguments):
            first = outcomes[name][row]
            if is_change(first, second):
                outcomes[name].clear()  # or the next run would take them for granted
                function = self.asked.score.rewards[name].function
                raise UserError(f"score.rewards.{name} ({function}): {rows.name(row)}: {changed(first, second)}")

    def _call(self, rows: PartRows, calls: list[Call], outcomes: dict[str, dict[int, Outcome]]) -> None:
        """Make the calls; add their outcomes as they come."""
        num_open = Counter(row for _, each in calls for row in each)
        self.progress.advance(len(rows.prompt_ids) - len(num_open))
        for name, row, outcome in self.pool.run(calls, rows.arguments):
            outcomes[name][row] = outcome
            if outcome.seconds > self.slowest_seconds:
                self.slowest_seconds = outcome.seconds
                self.slowest = f"{outcome.seconds:.2g} s ({name} of {rows.name(row)})"
            if outcome.status in FAILED:
                self.failures.add(name, rows.prompt_ids[row], rows.samples[row], outcome.status, outcome.message)
            num_open[row] -= 1
            if not num_open[row]:
                self.progress.advance()


def total_rewards(rewards: dict[str, Reward], outcomes: Mapping[str, Sequence[Outcome]]) -> list[float | None]:
    """The total of each row, from each component's outcomes row by row; None where one failed or none counts."""
    values = {name: np.array([outcome.value for outcome in each], np.float64) for name, each in outcomes.items()}
    failed = np.any([[outcome.status in FAILED for outcome in each] for each in outcomes.values()], axis=0)
    return totals(values, failed, rewards)
