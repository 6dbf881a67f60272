"""The scores table: each completion's reward, and each reward function's value, status and message."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.tables.parquet import part_paths, read_footer
from gift.tables.parts import KEY, read_table, refuse_rows

STATUSES = ("ok", "abstain", "timeout", "error", "invalid")


def scores_schema(rewards: Iterable[str]) -> pa.Schema:
    """`reward`, then for each reward function its value (null unless ok), status and message."""
    fields = [*KEY, pa.field("reward", pa.float64())]
    for name in rewards:
        fields += [
            pa.field(name, pa.float64()),
            pa.field(f"{name}_status", pa.string(), nullable=False),
            pa.field(f"{name}_message", pa.string()),
        ]
    return pa.schema(fields)


def read_scores(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The whole table without its messages, under the rewards that its own metadata name."""
    columns, metadata = read_footer(part_paths(folder)[0])
    settings = metadata.get("rewards", {})  # sorted by name: the columns have their order
    rewards = sorted(settings, key=lambda name: [*columns, name].index(name))
    return read_table(folder, scores_schema(rewards), check_scores, ["reward", *rewards])


def check_scores(table: pa.Table, path: Path) -> None:
    """Statuses are known; a component has a finite value if, and only if, its status is ok."""
    finite = pc.fill_null(pc.is_finite(table["reward"]), True)
    refuse_rows(table, path, pc.invert(finite), "reward is not a finite number")
    for column in table.column_names:
        if not column.endswith("_status"):
            continue
        name = column.removesuffix("_status")
        known = pc.is_in(table[column], value_set=pa.array(STATUSES))
        refuse_rows(table, path, pc.invert(known), f"unknown {column}")
        has_value = pc.fill_null(pc.is_finite(table[name]), False)
        different = pc.not_equal(has_value, pc.equal(table[column], "ok"))
        refuse_rows(table, path, different, f"{name} must have a finite value if, and only if, {column} is ok")
