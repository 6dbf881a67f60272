"""Tables as folders of parts, each checked as it is written and read; a row's key is (prompt_id, sample)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.tables.parquet import check_schema, part_name, part_paths, read_file, with_metadata, write_file

KEY = [pa.field("prompt_id", pa.string(), nullable=False), pa.field("sample", pa.int32(), nullable=False)]

Law = Callable[[pa.Table, Path], None]
"""Raises a `UserError` where a table is wrong; its metadata are there (`metadata_of`)."""


def write_part(
    folder: Path, index: int, table: pa.Table, schema: pa.Schema, law: Law, metadata: dict[str, Any]
) -> None:
    """Check a part against its schema and law, then write it; nothing wrong ever reaches the disk."""
    path = folder / part_name(index)
    _check(with_metadata(table, metadata), schema, law, path)
    write_file(path, pa.table(table.columns, schema=schema), metadata)


def read_part(path: Path, schema: pa.Schema, law: Law) -> tuple[pa.Table, dict[str, Any]]:
    """One part, checked."""
    table, metadata = read_file(path)
    _check(table, schema, law, path)
    return table, metadata


def _check(table: pa.Table, schema: pa.Schema, law: Law, path: Path) -> None:
    check_schema(table, schema, path)
    check_key(table, path)
    law(table, path)


def read_parts(folder: Path, schema: pa.Schema, law: Law) -> Iterator[tuple[Path, pa.Table, dict[str, Any]]]:
    """The parts of a table one after the other, each checked; all have one metadata, and no row is missing."""
    first: dict[str, Any] | None = None
    paths = part_paths(folder)
    num_rows = 0
    for path in paths:
        table, metadata = read_part(path, schema, law)
        first = first or metadata
        if metadata != first:
            raise UserError(f"{path}: was not made in the same run as {paths[0]}; run the stage that writes it again")
        num_rows += table.num_rows
        yield path, table, metadata
        del table  # before the next is read
    if first and first.get("num_rows", num_rows) != num_rows:
        raise UserError(
            f"{folder}: has {num_rows:,} of the {first['num_rows']:,} rows that it was written with, so parts are "
            "missing; remove it, then `dvc checkout` or `dvc repro` brings it back"
        )


def read_table(
    folder: Path, schema: pa.Schema, law: Law, columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """All parts of a table, checked each and together (one metadata, one ascending key).

    columns: those to keep beside the key; all are checked.
    """
    kept = schema.names if columns is None else ["prompt_id", "sample", *columns]
    parts, metadata = zip(
        *((part.select(kept), each) for _, part, each in read_parts(folder, schema, law)), strict=True
    )
    table = pa.concat_tables(parts)
    check_key(table, folder)
    return table, metadata[0]


def keys_of(table: pa.Table) -> list[tuple[str, int]]:
    """(prompt_id, sample) of every row."""
    return list(zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True))


def check_key(table: pa.Table, path: Path) -> None:
    """Rows stand in strictly ascending order of (prompt_id, sample), so that no key occurs twice."""
    before, after = table.slice(0, max(0, table.num_rows - 1)), table.slice(1)
    prompts, samples = ((before[name], after[name]) for name in ("prompt_id", "sample"))
    ascending = pc.or_(pc.less(*prompts), pc.and_(pc.equal(*prompts), pc.less(*samples)))
    row = pc.index(ascending, False).as_py()
    if row >= 0:
        name, last = row_name(table, row + 1), row_name(table, row)
        problem = f"the key {name} occurs twice" if name == last else f"{name} stands after {last}; rows must be sorted"
        raise UserError(f"{path}: row {row + 1}: {problem}")


def check_same_rows(table: pa.Table, rollouts: pa.Table, path: Path) -> None:
    """A table beside the rollouts has one row for each of theirs, in the same order."""
    for name in ("prompt_id", "sample"):
        if not table[name].equals(rollouts[name]):
            raise UserError(
                f"{path}: its rows are not those of the rollouts ({table.num_rows} against {rollouts.num_rows}); "
                "run the stage that writes it again"
            )


def check_logprobs(table: pa.Table, path: Path, name: str) -> None:
    """Every log-prob of a column of lists is finite and at most 0, but for rounding."""
    column = Ragged.from_arrow(table[name])
    values = column.values
    if not len(values) or (values.min() > -np.inf and values.max() <= 1e-3):  # false for nan
        return
    wrong = int((~np.isfinite(values) | (values > 1e-3)).argmax())
    row = int(np.searchsorted(column.offsets, wrong, side="right")) - 1
    raise UserError(
        f"{path}: row {row} ({row_name(table, row)}): {name} holds {values[wrong]:g}; a log-prob is "
        "finite and at most 0: the policy's weights are broken, or the table was changed by hand"
    )


def check_lengths(table: pa.Table, path: Path, name: str, lengths: pa.ChunkedArray) -> None:
    """A column of lists has as many elements in each row as that row's completion has tokens."""
    different = pc.not_equal(pc.list_value_length(table[name]), lengths)
    refuse_rows(table, path, different, f"{name} is not as long as the completion")


def refuse_rows(table: pa.Table, path: Path, wrong: pa.ChunkedArray, what: str) -> None:
    """Refuse a table by the first row that is wrong, if there is one."""
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise UserError(f"{path}: row {row} ({row_name(table, row)}): {what}")


def row_name(table: pa.Table, row: int) -> str:
    return f"prompt_id={table['prompt_id'][row]}, sample={table['sample'][row]}"
