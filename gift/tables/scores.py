"""What rewards said of completions: scores, which an update reads; notes, which people read; of answers both in one."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.tables.parquet import part_paths, read_footer
from gift.tables.parts import KEY, read_table, refuse_rows

STATUSES = ("ok", "abstain", "timeout", "error", "invalid")


def scores_schema(rewards: Iterable[str]) -> pa.Schema:
    """`reward`, then for each reward function its value (null unless ok) and status."""
    return pa.schema([*KEY, pa.field("reward", pa.float64()), *_columns(rewards)])


def notes_schema(rewards: Collection[str], watched: Iterable[str]) -> pa.Schema:
    """Value and status of each watched reward, then the message of each reward."""
    messages = [pa.field(f"{name}_message", pa.string()) for name in rewards]
    return pa.schema([*KEY, *_columns(watched), *messages])


def everything(rewards: Collection[str]) -> pa.Schema:
    """The columns of both."""
    return pa.schema([*scores_schema(rewards), *list(notes_schema(rewards, ()))[len(KEY) :]])


def _columns(rewards: Iterable[str]) -> list[pa.Field]:
    fields = []
    for name in rewards:
        fields += [pa.field(name, pa.float64()), pa.field(f"{name}_status", pa.string(), nullable=False)]
    return fields


def read_scores(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The whole table, under the rewards that its own metadata name."""
    columns, metadata = read_footer(part_paths(folder)[0])
    settings = metadata.get("rewards", {})  # sorted by name: the columns have their order
    rewards = sorted(settings, key=lambda name: [*columns, name].index(name))
    return read_table(folder, scores_schema(rewards), check_scores, ["reward", *rewards])


def read_notes(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The whole table, under the rewards that its own columns name."""
    rewards, watched = (_named(folder, end) for end in ("_message", "_status"))
    return read_table(folder, notes_schema(rewards, watched), check_notes)


def read_answer_scores(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """What `evaluate` keeps of its answers, one table with messages, under the rewards that its own columns name."""
    return read_table(folder, everything(_named(folder, "_message")), check_scores)


def _named(folder: Path, end: str) -> list[str]:
    """The rewards that have a column with this end."""
    columns, _ = read_footer(part_paths(folder)[0])
    return [name.removesuffix(end) for name in columns if name.endswith(end)]


def check_scores(table: pa.Table, path: Path) -> None:
    """The total is finite where there is one; statuses are known, and have a value where they must."""
    finite = pc.fill_null(pc.is_finite(table["reward"]), True)
    refuse_rows(table, path, pc.invert(finite), "reward is not a finite number")
    check_notes(table, path)


def check_notes(table: pa.Table, path: Path) -> None:
    """Statuses are known; a component has a finite value if, and only if, its status is ok."""
    for column in table.column_names:
        if not column.endswith("_status"):
            continue
        name = column.removesuffix("_status")
        known = pc.is_in(table[column], value_set=pa.array(STATUSES))
        refuse_rows(table, path, pc.invert(known), f"unknown {column}")
        has_value = pc.fill_null(pc.is_finite(table[name]), False)
        different = pc.not_equal(has_value, pc.equal(table[column], "ok"))
        refuse_rows(table, path, different, f"{name} must have a finite value if, and only if, {column} is ok")
