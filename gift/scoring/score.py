"""Rollouts to scores and notes, part by part: every reward function on every row; a failed reward is null, never 0."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.project.code import code_of
from gift.project.console import Progress
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.work import Work, tree_digest
from gift.scoring.cache import ROOT
from gift.scoring.metrics import Failures
from gift.scoring.plan import USER_FOLDER
from gift.scoring.rows import Asked, PartRows
from gift.scoring.scorer import PartScorer, Shared, Ways
from gift.scoring.settings import Score, ScoreLaunch
from gift.tables.counting import rewards_digest, what_counts
from gift.tables.parquet import part_name, part_paths, read_file, read_footer
from gift.tables.parts import Law, check_key, check_same_rows, read_part, read_parts, write_part
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_notes, check_scores, everything, notes_schema, scores_schema
from gift.workers.settings import Workers


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
    label: str, rollouts: Path, prompts: Path, table: pa.Table, score: Score, launch: ScoreLaunch, workers: Workers
) -> tuple[Work, Scored]:
    """Score completions into `scores` of the work folder of `label` (as score@r1); `table` is what `prompts` holds."""
    _, source = read_footer(part_paths(rollouts)[0])
    metadata = {"policy": source["policy"], "rollouts": tree_digest(rollouts)}
    files = {"prompts": file_digest(prompts), "rewards": tree_digest(USER_FOLDER), "settings": settings_of(score)}
    counting = {"counting": rewards_digest([settings_of(score)], code_of("score"))}
    work = Work(label, metadata | files | counting)
    folder, endpoint = work.folder / "everything", launch.judge_endpoint
    shared = Shared(prompts, launch.processes, workers)
    ways = launch.workers, metadata, label, endpoint, ROOT, shared
    return work, score_parts(folder, rollouts, table, score, *ways)


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
    shared: Shared | None = None,
) -> Scored:
    """Score the rollouts into `folder`, part by part as they are cut; parts that are there already are kept.

    The same rows give the same table whatever the number of `workers`, and by whom (`shared`) they are called. Values
    in `cache` are taken from there. The keys of all rows are checked before a function is called; then a part is read
    once, and one is in memory at a time. Raises where one function fails for more than `max_failed_share` of all
    completions.
    """
    asked = Asked(score, prompts)
    prompt_ids = _prompt_ids(rollouts, asked)
    num_asked = {name: len(asked.rows(name, prompt_ids)) for name in score.rewards}
    failures, schema = Failures(score, num_asked, folder), everything(score.rewards)
    num_done = sum(read_file(path, ["sample"])[0].num_rows for path in folder.glob("*.parquet"))
    ways = Ways(label, folder, num_asked, workers, judge_endpoint, cache)
    rows: list[pa.Table] = []
    scores: list[pa.Table] = []
    with Progress(label, len(prompt_ids), "completions", num_done) as progress:
        made = shared.score(ways, score, rollouts, metadata, progress) if shared else None
        with PartScorer(ways, score, asked, failures, progress.advance) as scorer:
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
    found = made or scorer.found
    return Scored(pa.concat_tables(rows), pa.concat_tables(scores), found.slowest, found.num_reused, num_asked, source)


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
