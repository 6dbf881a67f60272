"""Strict reading and writing of Parquet tables: same rows, same bytes; anything unexpected is refused by name.

A table is a folder of parts, each checked as it is written and read; a row's key is (prompt_id, sample).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.work import whole_file

SCHEMA_VERSION = 1
METADATA_KEY = b"gift"


def write_file(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write one Parquet file, whole or not at all; `metadata` (JSON: artifact, policy, ...) goes into the schema."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **metadata}, sort_keys=True)
    table = table.replace_schema_metadata({METADATA_KEY: text.encode()})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_file(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """One Parquet file (or some columns) as (table, metadata); a missing, corrupt or foreign one is refused by name."""
    try:
        table = pq.read_table(path, columns=columns, partitioning=None, page_checksum_verification=True)
        _ = table.column_names  # a damaged name shows when it is decoded
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return table, _metadata(path, table.schema)


def read_footer(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Names of the columns and metadata of one Parquet file, without its rows; refused as by `read_file`."""
    try:
        schema = pq.read_metadata(path).schema.to_arrow_schema()
        names: list[str] = schema.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return names, _metadata(path, schema)


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file; run `dvc repro` to make it, or `dvc pull` to fetch it")
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path}: not a readable Parquet file ({first}); remove it, then `dvc checkout` or `dvc repro` brings it back"
    )


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path}: was not written by this pipeline (no '{METADATA_KEY.decode()}' metadata)")
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = metadata["schema_version"]
    except (ValueError, KeyError):
        raise UserError(f"{path}: its metadata is damaged; remove it, then `dvc checkout` or `dvc repro`") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: has schema version {version}, this code reads {SCHEMA_VERSION}; make it again with this version"
        )
    return metadata


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def part_paths(folder: Path) -> list[Path]:
    """The parts of a table in order; a gap or a foreign file is refused by name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such table; run `dvc repro` to make it, or `dvc pull` to fetch it")
    found = sorted(path.name for path in folder.iterdir())
    expected = [part_name(index) for index in range(len(found))]
    if not found:
        raise UserError(f"{folder}: the table has no part; run the stage that writes it again")
    for name, want in zip(found, expected, strict=True):
        if name != want:
            raise UserError(f"{folder / name}: unexpected file; the table's next part must be {want}")
    return [folder / name for name in found]


def check_schema(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Names, order, types and nulls must be those of `schema` (fields say whether they may be null)."""
    for name in schema.names:
        if name not in table.column_names:
            raise UserError(f"{path}: the column '{name}' is missing; it must have {', '.join(schema.names)}")
    for name in table.column_names:
        if name not in schema.names:
            raise UserError(f"{path}: unexpected column '{name}'; it must have {', '.join(schema.names)}")
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            raise UserError(f"{path}: column '{field.name}' has type {column.type}, must be {field.type}")
        if not field.nullable and column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise UserError(f"{path}: row {row}: '{field.name}' is null; a value is required")
        if pa.types.is_list(field.type):
            values = pc.list_flatten(column)
            if values.null_count:
                raise UserError(f"{path}: column '{field.name}' has a null inside a list; every element needs a value")
    if table.column_names != schema.names:
        raise UserError(f"{path}: columns stand in the order {table.column_names}, must be {schema.names}")


KEY = [pa.field("prompt_id", pa.string(), nullable=False), pa.field("sample", pa.int32(), nullable=False)]

Law = Callable[[pa.Table, Path], None]


def write_part(
    folder: Path, index: int, table: pa.Table, schema: pa.Schema, law: Law, metadata: dict[str, Any]
) -> None:
    """Check a part against its schema and law, then write it; nothing wrong ever reaches the disk."""
    path = folder / part_name(index)
    _check(table, schema, law, path)
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


def read_table(
    folder: Path, schema: pa.Schema, law: Law, columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """All parts of a table, checked each and together; columns: those to keep beside the key; all are checked."""
    kept = schema.names if columns is None else ["prompt_id", "sample", *columns]
    parts, metadata = zip(
        *((part.select(kept), each) for _, part, each in read_parts(folder, schema, law)), strict=True
    )
    table = pa.concat_tables(parts)
    check_key(table, folder)
    return table, metadata[0]


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
