"""The prompts that training will see: prepared already, or made in memory as `prepare` will make them."""

import inspect
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.doctor.findings import Finding, Level, refusal
from gift.doctor.settings import Params
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.prompts.sources import prepare_prompts
from gift.rewards.names import REWARDS
from gift.scoring import rows
from gift.scoring.asked import Asked, Mask
from gift.scoring.settings import Score
from gift.tables.prompts import check_prompts, prompt_column, prompts_table, read_prompts

THEME = "data"
TRAIN = Path("data/prompts/train.parquet")
EVAL = Path("data/prompts/eval.parquet")
QUICK_BYTES = 8_000_000
"""Of local sources that are read within a second; `gift doctor` without --quick has no limit."""
FEW_EVAL = 50


@dataclass(frozen=True)
class Prompts:
    """The tables of training and of evaluation, as the stages will read them."""

    train: pa.Table
    eval: pa.Table


def find_prompts(params: Params, limit: int | None) -> tuple[Prompts | None, list[Finding]]:
    """Prompts made with these settings; None where they are wrong, or where it would take reading more than `limit`.

    Sources are read anew where that is quick, for a file may have changed since `prepare` ran.
    """
    names = sorted(set(_sources(params.prepare.model_dump())))
    size = sum(_size(name, params) for name in names)
    large = limit is not None and size > limit
    if large or any(name.startswith("hub:") for name in names):
        prepared = _prepared(params)
        if prepared:
            return prepared, [_described(prepared)]
    if large:
        text = f"{', '.join(names)}: not looked at in a quick check; `gift doctor` does before `prepare` has run"
        return None, [Finding("note", THEME, text, "params.yaml: prepare")]
    try:
        made = prepare_prompts(params.prepare, params.seed, params.arithmetic.num_operands)
        tables = Prompts(prompts_table(made.train, TRAIN), prompts_table(made.eval, EVAL))
        check_prompts(tables.train, TRAIN)
        check_prompts(tables.eval, EVAL)
    except UserError as error:
        return None, [refusal(THEME, error)]
    return tables, [_described(tables)]


def prompt_findings(prompts: Prompts, score: Score) -> list[Finding]:
    """What loads, but is hardly meant: empty cells, the same prompt twice or held out, a tiny evaluation."""
    findings = [*_empty_findings(prompts.train, "train", score), *_empty_findings(prompts.eval, "eval", score)]
    train, held_out = [_normal(text) for text in texts(prompts.train)], [_normal(text) for text in texts(prompts.eval)]
    repeated = len(train) - len(set(train))
    if repeated:
        text = f"{repeated:,} of {len(train):,} training prompts repeat another (case and white space aside); drop them"
        findings.append(Finding("warning", THEME, text, str(TRAIN)))
    leaked = set(train) & set(held_out)
    if leaked:
        text = (
            f"{len(leaked):,} of {len(held_out):,} eval prompts are in train too (case and white space aside), as "
            f"{min(leaked)[:60]!r}; drop them from one"
        )
        findings.append(Finding("warning", THEME, text, str(EVAL)))
    if len(held_out) < FEW_EVAL:
        error = 0.5 / max(1, len(held_out)) ** 0.5
        text = f"{len(held_out)}: an accuracy near one half has a standard error of {error:.2f}; 200 or more are usual"
        findings.append(Finding("note", THEME, text, "params.yaml: prepare.num_eval"))
    return findings


def texts(table: pa.Table) -> list[str]:
    """Each prompt as one text; the messages of a chat one after another."""
    prompts = table[prompt_column(table)].to_pylist()
    return [prompt if isinstance(prompt, str) else "\n".join(each["content"] for each in prompt) for prompt in prompts]


def _described(prompts: Prompts) -> Finding:
    kind = prompt_column(prompts.train)
    others = [name for name in prompts.train.column_names if name not in ("prompt_id", kind)]
    columns = f"columns for rewards: {', '.join(others)}" if others else "no column for rewards besides the prompt"
    text = f"{prompts.train.num_rows:,} training and {prompts.eval.num_rows:,} eval prompts ({kind}); {columns}"
    return Finding("ok", THEME, text)


def _prepared(params: Params) -> Prompts | None:
    """What `prepare` has written, if it was with these settings."""
    tables = []
    for path in (TRAIN, EVAL):
        try:
            table, metadata = read_prompts(path)
        except UserError:
            return None
        if metadata.get("settings") != settings_of(params.prepare) or metadata.get("seed") != params.seed:
            return None
        tables.append(table)
    return Prompts(*tables)


def _empty_findings(table: pa.Table, split: str, score: Score) -> Iterator[Finding]:
    """A gold answer that is not there fails its row in every reward that reads it."""
    try:
        asked = Asked(score, rows.Prompts(table))
    except UserError:
        return  # said of the rewards
    for name in table.column_names:
        column = table[name].filter(pa.array(_read_in(name, asked)))
        empty = column.null_count
        if pa.types.is_string(column.type):
            empty += pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0
        if empty:
            text = (
                f"column '{name}' is empty in {empty:,} of {table.num_rows:,} rows; a reward that reads it fails there"
            )
            level: Level = "warning" if name == "answer" else "note"
            yield Finding(level, THEME, text, str(TRAIN if split == "train" else EVAL))


def _read_in(column: str, asked: Asked) -> Mask:
    """The prompts for which a reward that reads the column is asked: the rows of another source may well lack it.

    Ours read what their parameters and settings name; where none does, a function of the user may; else all prompts.
    """
    ours: list[Mask] = []
    others: list[Mask] = []
    for name, reward in asked.score.rewards.items():
        if reward.function not in REWARDS or reward.function == "judge":
            others.append(asked.masks[name])
            continue
        parameters = inspect.signature(REWARDS[reward.function]).parameters
        defaults = {key: parameter.default for key, parameter in parameters.items()}
        if column in parameters or column in [*{**defaults, **reward.settings}.values()]:
            ours.append(asked.masks[name])
    everything = np.ones(asked.prompts.table.num_rows, dtype=bool)
    return np.logical_or.reduce(ours or others or [everything])


def _sources(section: Any) -> Iterator[str]:
    """The values of every key `source` and `eval_source`, however deep."""
    for key, value in section.items() if isinstance(section, dict) else ():
        if key in ("source", "eval_source") and isinstance(value, str):
            yield value
        for each in value if isinstance(value, list) else [value]:
            yield from _sources(each)


def _size(name: str, params: Params) -> float:
    """Bytes behind a source, about; a hub's data set is large until it is prepared."""
    if name == "arithmetic":
        return 100 * ((params.prepare.num_train or 0) + params.prepare.num_eval)
    if name.startswith("hub:"):
        return float("inf")
    anchor = Path(name).anchor
    found = [Path(name)] if Path(name).exists() else list(Path(anchor).glob(name.removeprefix(anchor)))
    files = [file for path in found for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
