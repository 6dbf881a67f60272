"""The rollouts of a round as text: prompts, completions and rewards side by side."""

from collections.abc import Iterator
from pathlib import Path

import click
import pandas as pd
import pyarrow as pa

from gift.project.errors import UserError
from gift.tables.parquet import part_paths, read_file
from gift.tables.prompts import read_prompts


def round_text(rollouts: Path, scores: Path, prompts: Path, num: int, prompt_id: str | None) -> Iterator[str]:
    """Lines about the first `num` groups of a round, or about the group of one prompt."""
    table = _frame(rollouts).merge(_frame(scores), on=["prompt_id", "sample"], validate="one_to_one")
    asked = read_prompts(prompts)[0].to_pandas().set_index("prompt_id")
    groups = dict(list(table.groupby("prompt_id", sort=False)))
    if prompt_id is not None and prompt_id not in groups:
        raise UserError(f"prompt_id={prompt_id}: not among the {len(groups)} prompts of {rollouts}")
    shown = [prompt_id] if prompt_id is not None else list(groups)[:num]
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


def _frame(folder: Path) -> pd.DataFrame:
    frame: pd.DataFrame = pa.concat_tables([read_file(path)[0] for path in part_paths(folder)]).to_pandas()
    return frame
