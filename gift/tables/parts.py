"""The columns and laws of each table; the key of a rollout is (prompt_id, sample)."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.tables.parquet import check_schema, part_name, part_paths, read_file, write_file

FINISH_REASONS = ("stop", "length")
STATUSES = ("ok", "abstain", "timeout", "error", "invalid")
KEY = [pa.field("prompt_id", pa.string(), nullable=False), pa.field("sample", pa.int32(), nullable=False)]

ROLLOUTS = pa.schema(
    [
        *KEY,
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("rollout_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)
REFERENCE = pa.schema(
    [
        *KEY,
        pa.field("ref_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("old_logprobs", pa.list_(pa.float32()), nullable=False),
    ]
)


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


Law = Callable[[pa.Table, Path], None]


def write_part(
    folder: Path, index: int, table: pa.Table, schema: pa.Schema, law: Law, metadata: dict[str, Any]
) -> None:
    """Check a part against its schema and law, then write it; nothing wrong ever reaches the disk."""
    path = folder / part_name(index)
    check_schema(table, schema, path)
    check_key(table, path)
    law(table, path)
    write_file(path, pa.table(table.columns, schema=schema), metadata)


def read_part(path: Path, schema: pa.Schema, law: Law) -> tuple[pa.Table, dict[str, Any]]:
    """One part, checked."""
    table, metadata = read_file(path)
    check_schema(table, schema, path)
    check_key(table, path)
    law(table, path)
    return table, metadata


def read_parts(folder: Path, schema: pa.Schema, law: Law) -> Iterator[tuple[Path, pa.Table, dict[str, Any]]]:
    """The parts of a table one after the other, each checked; all have one metadata."""
    first: dict[str, Any] | None = None
    paths = part_paths(folder)
    for path in paths:
        table, metadata = read_part(path, schema, law)
        first = first or metadata
        if metadata != first:
            raise UserError(f"{path}: was not made in the same run as {paths[0]}; run the stage that writes it again")
        yield path, table, metadata
        del table  # before the next is read


def read_table(folder: Path, schema: pa.Schema, law: Law) -> tuple[pa.Table, dict[str, Any]]:
    """All parts of a table, checked each and together (one metadata, one ascending key)."""
    _, parts, metadata = zip(*read_parts(folder, schema, law), strict=True)
    table = pa.concat_tables(parts)
    check_key(table, folder)
    return table, metadata[0]


def check_key(table: pa.Table, path: Path) -> None:
    """Rows stand in strictly ascending order of (prompt_id, sample), so that no key occurs twice."""
    keys = list(zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True))
    for row, (before, after) in enumerate(pairwise(keys)):
        if before == after:
            raise UserError(f"{path}: row {row + 1}: the key {_name(after)} occurs twice")
        if before > after:
            raise UserError(f"{path}: row {row + 1}: {_name(after)} stands after {_name(before)}; rows must be sorted")


def check_rollouts(table: pa.Table, path: Path) -> None:
    """Every completion has tokens, one finite log-prob a token, a known finish reason; groups are whole and equal."""
    lengths = pc.list_value_length(table["completion_ids"])
    _refuse(table, path, pc.equal(lengths, 0), "completion_ids is empty")
    _refuse(table, path, pc.equal(pc.list_value_length(table["prompt_ids"]), 0), "prompt_ids is empty")
    _lengths_agree(table, path, "rollout_logprobs", lengths)
    _check_logprobs(table, path, "rollout_logprobs")
    known = pc.is_in(table["finish_reason"], value_set=pa.array(FINISH_REASONS))
    _refuse(table, path, pc.invert(known), f"finish_reason must be one of {', '.join(FINISH_REASONS)}")
    groups = table.group_by("prompt_id", use_threads=False).aggregate([("sample", "count"), ("sample", "max")])
    size = groups["sample_count"][0].as_py()
    for prompt, count, last in zip(*(groups[name].to_pylist() for name in groups.column_names), strict=True):
        if count != size or last != count - 1:
            raise UserError(
                f"{path}: prompt_id={prompt} has {count} samples; every group must have samples 0 to {size - 1}"
            )


def check_reference(table: pa.Table, path: Path) -> None:
    """Both log-prob lists are finite and equally long."""
    _lengths_agree(table, path, "old_logprobs", pc.list_value_length(table["ref_logprobs"]))
    _check_logprobs(table, path, "ref_logprobs")
    _check_logprobs(table, path, "old_logprobs")


def check_scores(table: pa.Table, path: Path) -> None:
    """Statuses are known; a component has a finite value if, and only if, its status is ok."""
    finite = pc.fill_null(pc.is_finite(table["reward"]), True)
    _refuse(table, path, pc.invert(finite), "reward is not a finite number")
    for column in table.column_names:
        if not column.endswith("_status"):
            continue
        name = column.removesuffix("_status")
        _refuse(table, path, pc.invert(pc.is_in(table[column], value_set=pa.array(STATUSES))), f"unknown {column}")
        has_value = pc.fill_null(pc.is_finite(table[name]), False)
        ok = pc.equal(table[column], "ok")
        _refuse(
            table, path, pc.not_equal(has_value, ok), f"{name} must have a finite value if, and only if, {column} is ok"
        )


def check_same_rows(table: pa.Table, rollouts: pa.Table, path: Path) -> None:
    """A table beside the rollouts has one row for each of theirs, in the same order."""
    for name in ("prompt_id", "sample"):
        if not table[name].equals(rollouts[name]):
            raise UserError(
                f"{path}: its rows are not those of the rollouts ({table.num_rows} against {rollouts.num_rows}); "
                "run the stage that writes it again"
            )


def _check_logprobs(table: pa.Table, path: Path, name: str) -> None:
    values = pc.list_flatten(table[name]).to_numpy()
    wrong = ~np.isfinite(values) | (values > 1e-3)
    if wrong.any():
        row = int(
            np.searchsorted(np.cumsum(pc.list_value_length(table[name]).to_numpy()), wrong.argmax(), side="right")
        )
        raise UserError(
            f"{path}: row {row} ({_row_name(table, row)}): {name} holds {values[wrong.argmax()]:g}; a log-prob is "
            "finite and at most 0: the policy's weights are broken, or the table was changed by hand"
        )


def _lengths_agree(table: pa.Table, path: Path, name: str, lengths: pa.ChunkedArray) -> None:
    different = pc.not_equal(pc.list_value_length(table[name]), lengths)
    _refuse(table, path, different, f"{name} is not as long as the completion")


def _refuse(table: pa.Table, path: Path, wrong: pa.ChunkedArray, what: str) -> None:
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise UserError(f"{path}: row {row} ({_row_name(table, row)}): {what}")


def _row_name(table: pa.Table, row: int) -> str:
    return _name((table["prompt_id"][row].as_py(), table["sample"][row].as_py()))


def _name(key: tuple[str, int]) -> str:
    return f"prompt_id={key[0]}, sample={key[1]}"
