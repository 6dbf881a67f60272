"""The prompts that training will see: prepared already, or made in memory as `prepare` will make them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift.doctor.findings import Finding, Theme
from gift.doctor.whole import Params
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.prompts.decontamination import normalized
from gift.prompts.origins import num_bytes
from gift.prompts.sources import prepare_prompts
from gift.scoring.rows import Asked
from gift.scoring.settings import Score
from gift.tables.prompts import check_prompts, prompt_column, prompts_table, read_prompts

say = Theme("data")
TRAIN, EVAL = Path("data/prompts/train.parquet"), Path("data/prompts/eval.parquet")
QUICK_BYTES = 8_000_000
"""Of local sources that are read within a second; `gift doctor` without --quick has no limit."""
FEW_EVAL = 50


@dataclass(frozen=True)
class Prompts:
    """The tables of training and of evaluation, as the stages will read them."""

    train: pa.Table
    eval: pa.Table


def find_prompts(params: Params, limit: float) -> tuple[Prompts | None, list[Finding]]:
    """Prompts made with these settings; None where they are wrong, or where it would take reading more than `limit`.

    Sources are read anew where that is quick, for a file may have changed since `prepare` ran.
    """
    try:
        size = num_bytes(params.prepare)
        tables = _prepared(params) if size > limit or size == inf else None
        if tables is None and size > limit:
            text = "a large source is not looked at in a quick check; `gift doctor` does before `prepare` has run"
            return None, [say.note(f"params.yaml: prepare: {text}")]
        if tables is None:
            made = prepare_prompts(params.prepare, params.seed, params.arithmetic.num_operands)
            tables = Prompts(prompts_table(made.train, TRAIN), prompts_table(made.eval, EVAL))
            check_prompts(tables.train, TRAIN)
            check_prompts(tables.eval, EVAL)
    except UserError as error:
        return None, say.refused(error)
    kind = prompt_column(tables.train)
    others = [name for name in tables.train.column_names if name not in ("prompt_id", kind)]
    columns = f"columns for rewards: {', '.join(others)}" if others else "no column for rewards besides the prompt"
    counts = f"{tables.train.num_rows:,} training and {tables.eval.num_rows:,} eval prompts ({kind})"
    return tables, [say.ok(f"{counts}; {columns}")]


def prompt_findings(prompts: Prompts, score: Score) -> Iterator[Finding]:
    """What loads, but is hardly meant: empty cells, the same prompt twice or held out, a tiny evaluation."""
    yield from _empty_findings(prompts.train, TRAIN, score)
    yield from _empty_findings(prompts.eval, EVAL, score)
    train, held_out = _texts(prompts.train), _texts(prompts.eval)
    if repeated := len(train) - len(set(train)):
        text = "training prompts repeat another (but for case, spaces and marks); drop them (prepare.dedup)"
        yield say.warning(f"{repeated:,} of {len(train):,} {text}", str(TRAIN))
    if leaked := set(train) & set(held_out):
        text = f"eval prompts are in train too (but for case, spaces and marks), as {min(leaked)[:60]!r}"
        yield say.warning(f"{len(leaked):,} of {len(held_out):,} {text}; drop them from one", str(EVAL))
    if len(held_out) < FEW_EVAL:
        error = 0.5 / max(1, len(held_out)) ** 0.5
        text = f"an accuracy near one half has a standard error of {error:.2f}; 200 or more are usual"
        yield say.note(f"params.yaml: prepare.num_eval: {len(held_out)}: {text}")


def _texts(table: pa.Table) -> list[str]:
    """Each prompt as one text without differences of typography; the messages of a chat one after another."""
    prompts = table[prompt_column(table)].to_pylist()
    return [normalized(each if isinstance(each, str) else "\n".join(m["content"] for m in each)) for each in prompts]


def _prepared(params: Params) -> Prompts | None:
    """What `prepare` has written, if it was with these settings."""
    wanted = {"settings": settings_of(params.prepare), "seed": params.seed}
    try:
        found = [read_prompts(path) for path in (TRAIN, EVAL)]
    except UserError:
        return None
    same = all(metadata.get(key) == value for _, metadata in found for key, value in wanted.items())
    return Prompts(*(table for table, _ in found)) if same else None


def _empty_findings(table: pa.Table, path: Path, score: Score) -> Iterator[Finding]:
    """A gold answer that is not there fails its row in every reward that reads it."""
    try:
        asked = Asked(score, table)
    except UserError:
        return  # said of the rewards
    for name in table.column_names:
        column = table[name].filter(pa.array(asked.readers(name)))
        empty = column.null_count
        if pa.types.is_string(column.type):
            empty += pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0
        if empty:
            text = f"column '{name}' is empty in {empty:,} of {table.num_rows:,} rows; a reward that reads it fails"
            yield say.found("warning" if name == "answer" else "note", f"{text} there", str(path))
