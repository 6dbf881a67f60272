"""Which completions of a round to look at: groups in an order, and of each the best, the failed, those with a word."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gift.evaluation import estimates
from gift.project.errors import UserError
from gift.tables.parquet import part_paths, read_file, read_footer
from gift.tables.parts import keys_of
from gift.tables.prompts import prompt_column, read_prompts

BY: dict[str, Callable[[list[float], list[int]], float]] = {
    "reward": lambda rewards, _: sum(rewards) / len(rewards) if rewards else float("-inf"),
    "spread": lambda rewards, _: _deviation(rewards) if rewards else float("-inf"),
    "length": lambda _, lengths: sum(lengths) / len(lengths),
}
"""What groups may be ordered by: mean reward, standard deviation of the rewards, mean tokens."""
Key = tuple[str, int]


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of all of these; that of `statistics`, by fractions, takes 50 times as long."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


@dataclass(frozen=True)
class Places:
    """The tables of a round's rollouts, or of its answers to the held-out prompts."""

    rollouts: Path
    scores: Path
    notes: Path | None  # of answers the scores hold the messages, too
    prompts: Path

    @classmethod
    def of(cls, folder: Path, answers: bool) -> "Places":
        prompts = folder.absolute().parents[1] / "prompts"
        if answers:
            return cls(folder / "answers", folder / "answer_scores", None, prompts / "eval.parquet")
        return cls(folder / "rollouts", folder / "scores", folder / "notes", prompts / "train.parquet")


@dataclass(frozen=True)
class Query:
    """What to show: `num` prompts, or those named; `by` with the largest first, or the smallest (`ascending`)."""

    num: int = 2
    prompt_ids: tuple[str, ...] = ()
    by: str | None = None
    ascending: bool = False
    only: str | None = None
    search: str | None = None

    @property
    def looks_at_all(self) -> bool:
        """Whether more rows must be read than are shown."""
        return bool(self.prompt_ids or self.by or self.only or self.search)


@dataclass(frozen=True)
class Row:
    """A completion; rewards: value or, where there is none, status of each; messages: of those that said something."""

    key: Key
    text: str
    num_tokens: int
    finish_reason: str
    reward: float | None
    rewards: dict[str, float | str]
    messages: dict[str, str]


class Brief(NamedTuple):
    """A completion without its texts; has_word: whether it, or its prompt, has the text that is searched."""

    sample: int
    reward: float | None
    num_tokens: int
    finish_reason: str
    has_word: bool


@dataclass(frozen=True)
class Found:
    """The samples to show, by prompt in their order.

    counts: the prompts and rows that fit; None where no more was read than is shown.
    """

    samples: dict[str, list[int]]
    counts: tuple[int, int] | None


def find(places: Places, query: Query, rights: Mapping[Key, float], before: Mapping[Key, float]) -> Found:
    """Look at narrow columns, a part at a time: of a million rows the texts are never in memory together.

    rights: which answers are right; before: the same of the round that this one is held against.
    """
    if query.only in ("right", "wrong", "gained", "lost") and not rights:
        raise UserError(f"--only {query.only}: {places.scores} does not say what is right; add --answers")
    if query.only in ("gained", "lost") and not before:
        raise UserError(f"--only {query.only}: since which round? Add --against ROUND")
    enough = None if query.looks_at_all else query.num
    groups = briefs_of(places, query.search, enough)
    for prompt_id in query.prompt_ids:
        if prompt_id not in groups:
            raise UserError(f"prompt_id={prompt_id}: not among the {len(groups):,} prompts of {places.rollouts}")
    kept = {key: _kept(key, rows, query, rights, before) for key, rows in groups.items()}
    order = [key for key in (query.prompt_ids or groups) if kept[key]]
    if query.by:
        measure = {key: BY[query.by](_rewards(groups[key]), [row.num_tokens for row in groups[key]]) for key in order}
        order.sort(key=lambda key: measure[key], reverse=not query.ascending)
    shown = order if query.prompt_ids else order[: query.num]
    counts = (len(order), sum(len(kept[key]) for key in order)) if query.looks_at_all else None
    return Found({key: kept[key] for key in shown}, counts)


def briefs_of(places: Places, word: str | None = None, enough: int | None = None) -> dict[str, list[Brief]]:
    """The completions of each prompt without their texts, in which `word` is searched; `enough` whole groups do."""
    groups: dict[str, list[Brief]] = {}
    named = _with_word(places.prompts, word) if word else set()
    paths = part_paths(places.rollouts), part_paths(places.scores)
    if len(paths[0]) != len(paths[1]):
        raise UserError(f"{places.scores}: has {len(paths[1])} parts, {places.rollouts} {len(paths[0])}; `make repro`")
    for path, score_path in zip(*paths, strict=True):
        columns = ["prompt_id", "sample", "completion_ids", "finish_reason", *(["completion"] if word else [])]
        table, scores = read_file(path, columns)[0], read_file(score_path, ["prompt_id", "sample", "reward"])[0]
        if not all(table[name].equals(scores[name]) for name in ("prompt_id", "sample")):
            raise UserError(f"{score_path}: its rows are not those of {path}; run the stage that writes it again")
        has_word = _has(table["completion"], word) if word else [True] * table.num_rows
        lengths = pc.list_value_length(table["completion_ids"])
        told = (table["sample"], scores["reward"], lengths, table["finish_reason"])
        cells = zip(table["prompt_id"].to_pylist(), *(each.to_pylist() for each in told), has_word, strict=True)
        for prompt_id, sample, reward, num_tokens, reason, has in cells:
            brief = Brief(sample, reward, num_tokens, reason, has or prompt_id in named)
            groups.setdefault(prompt_id, []).append(brief)
        if enough is not None and len(groups) > enough:
            break  # the first groups are whole
    return groups


def _kept(
    prompt_id: str,
    rows: Sequence[Brief],
    query: Query,
    rights: Mapping[Key, float],
    before: Mapping[Key, float],
) -> list[int]:
    """The samples of a group that `only` and `search` leave; of the best and the worst one, the first of equals."""
    rewards = _rewards(rows)
    best, worst = (next((row for row in rows if rewards and row.reward == of(rewards)), None) for of in (max, min))

    def right(row: Brief, table: Mapping[Key, float] = rights) -> float | None:
        return table.get((prompt_id, row.sample))

    tests: dict[str | None, Callable[[Brief], bool]] = {
        None: lambda _: True,
        "best": lambda row: row is best,
        "worst": lambda row: row is worst,
        "failed": lambda row: row.reward is None,
        "truncated": lambda row: row.finish_reason == "length",
        "right": lambda row: right(row) == 1,
        "wrong": lambda row: right(row) == 0,
        "gained": lambda row: (right(row, before), right(row)) == (0, 1),
        "lost": lambda row: (right(row, before), right(row)) == (1, 0),
    }
    return [row.sample for row in rows if row.has_word and tests[query.only](row)]


def _rewards(rows: Sequence[Brief]) -> list[float]:
    return [row.reward for row in rows if row.reward is not None]


def rights_of(scores: Path) -> dict[Key, float]:
    """Of each answer whether it is right (1) or wrong (0), by the rewards that its scores name; else nothing."""
    _, metadata = read_footer(part_paths(scores)[0])
    judges = metadata.get("correct") or []
    if not judges:
        return {}
    table = pa.concat_tables(read_file(path, ["prompt_id", "sample", *judges])[0] for path in part_paths(scores))
    prompt_ids = table["prompt_id"].to_pylist()
    rights = estimates.rights_of(prompt_ids, {judge: table[judge].to_pylist() for judge in judges}) or []
    return {key: right for key, right in zip(keys_of(table), rights, strict=True) if right is not None}


def rows_of(places: Places, prompt_ids: Sequence[str]) -> dict[Key, Row]:
    """All completions of some prompts."""
    names = ["prompt_id", "sample", "completion", "completion_ids", "finish_reason"]
    texts, scores = read_rows(places.rollouts, prompt_ids, names), read_rows(places.scores, prompt_ids)
    notes = read_rows(places.notes, prompt_ids) if places.notes and places.notes.is_dir() else {}
    found = {}
    for key, row in texts.items():
        told = scores.get(key, {}) | notes.get(key, {})
        status = {name.removesuffix("_status"): value for name, value in told.items() if name.endswith("_status")}
        found[key] = Row(
            *(key, row["completion"], len(row["completion_ids"]), row["finish_reason"], told.get("reward")),
            {name: value if told[name] is None else told[name] for name, value in status.items()},
            {name: told[f"{name}_message"] for name in status if told.get(f"{name}_message")},
        )
    return found


def read_rows(
    folder: Path, prompt_ids: Sequence[str] | None, names: list[str] | None = None
) -> dict[Key, dict[str, Any]]:
    """The rows of some prompts, or of all (None), by their key; of all columns, or of those named."""
    tables = (read_file(path, names)[0] for path in part_paths(folder))
    parts = (table if prompt_ids is None else _of(table, prompt_ids) for table in tables)
    return {(row["prompt_id"], row["sample"]): row for part in parts for row in part.to_pylist()}


def prompts_of(places: Places, prompt_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The columns of some prompts; a `UserError` where the table is another than the completions were sampled for."""
    rows = _of(read_prompts(places.prompts)[0], prompt_ids).to_pylist()
    found = {row.pop("prompt_id"): row for row in rows}
    if other := [key for key in prompt_ids if key not in found]:
        raise UserError(
            f"{places.prompts}: has no prompt_id={other[0]}, which is in {places.rollouts}: it was made again since "
            "then"
        )
    return found


def _of(table: pa.Table, prompt_ids: Sequence[str]) -> pa.Table:
    kind = table.schema.field("prompt_id").type
    return table.filter(pc.is_in(table["prompt_id"], pa.array(list(prompt_ids), kind)))


def _has(column: pa.ChunkedArray, word: str) -> list[bool]:
    found: list[bool] = pc.match_substring(column, word, ignore_case=True).to_pylist()
    return found


def _with_word(prompts: Path, word: str) -> set[str]:
    """The prompts whose text has a word."""
    table, _ = read_prompts(prompts)
    cells = zip(table["prompt_id"].to_pylist(), table[prompt_column(table)].to_pylist(), strict=True)
    return {key for key, prompt in cells if any(word.lower() in text.lower() for _, text in turns(prompt))}


def turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    """Role and text of each message; of a plain prompt its text, of no role."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(str(each["role"]), str(each["content"])) for each in prompt]
