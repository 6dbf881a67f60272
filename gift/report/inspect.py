"""The rollouts of a round as text: prompts, completions and rewards side by side."""

from collections.abc import Iterator
from pathlib import Path

import click
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.tables.parquet import part_paths, read_file
from gift.tables.prompts import read_prompts


def round_text(rollouts: Path, scores: Path, prompts: Path, num: int, prompt_id: str | None) -> Iterator[str]:
    """Lines about the first `num` groups of a round, or about the group of one prompt."""
    known = _first_prompts(rollouts, None if prompt_id is not None else num)
    if prompt_id is not None and prompt_id not in known:
        raise UserError(f"prompt_id={prompt_id}: not among the {len(known)} prompts of {rollouts}")
    shown = [prompt_id] if prompt_id is not None else known
    table = _rows(rollouts, shown).merge(_rows(scores, shown), on=["prompt_id", "sample"], validate="one_to_one")
    asked = _of(read_prompts(prompts)[0], shown).to_pandas().set_index("prompt_id")
    groups = dict(list(table.groupby("prompt_id", sort=False)))
    if other := [key for key in shown if key not in asked.index]:
        raise UserError(
            f"{prompts}: has no prompt_id={other[0]!s}, which is in {rollouts}: it was made again since then"
        )
    for key in shown:
        yield click.style(f"prompt {key!s}", bold=True)
        yield from (f"  {column}: {value}" for column, value in asked.loc[key].items())
        for row in groups[key].to_dict("records"):
            reward = "failed" if pd.isna(row["reward"]) else f"{row['reward']:.3g}"
            facts = f"reward {reward}, {len(row['completion_ids'])} tokens, {row['finish_reason']}"
            yield f"  [{row['sample']}] {facts}: {row['completion']!r}"


def _first_prompts(rollouts: Path, num: int | None) -> list[str]:
    """The prompts of the first `num` groups, or of all; no more parts are read than hold them."""
    found: dict[str, None] = {}
    for path in part_paths(rollouts):
        found |= dict.fromkeys(read_file(path, ["prompt_id"])[0]["prompt_id"].to_pylist())
        if num is not None and len(found) >= num:
            break
    return list(found)[:num]


def _rows(folder: Path, prompt_ids: list[str]) -> pd.DataFrame:
    """What a table has of some prompts: of a million rows the others are never all in memory."""
    parts = [_of(read_file(path)[0], prompt_ids) for path in part_paths(folder)]
    frame: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return frame


def _of(table: pa.Table, prompt_ids: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["prompt_id"], pa.array(prompt_ids, table.schema.field("prompt_id").type)))
