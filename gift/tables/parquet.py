"""Strict reading and writing of Parquet files: same rows, same bytes; anything unexpected is refused by name."""

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift.project.errors import UserError
from gift.project.work import whole_file

SCHEMA_VERSION = 1
METADATA_KEY = b"gift"


def write_file(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write one Parquet file, whole or not at all; `metadata` goes into the schema (`with_metadata`)."""
    with whole_file(path) as temporary:
        pq.write_table(with_metadata(table, metadata), temporary, compression="zstd", write_page_checksum=True)


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """What a table that was read, or is to be written, says of itself; of another nothing."""
    return dict(json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}")))


def with_metadata(table: pa.Table, metadata: dict[str, Any]) -> pa.Table:
    """A table that says this of itself (JSON: artifact, policy, ...)."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **metadata}, sort_keys=True)
    return table.replace_schema_metadata({METADATA_KEY: text.encode()})


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


def _unreadable(path: Path, error: Exception) -> Exception:
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return error
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file; run `dvc repro` to make it, or `dvc pull` to fetch it")
    first = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "remove it, then `dvc checkout` or `dvc repro` brings it back"
    if isinstance(error, MemoryError):
        return UserError(
            f"{path}: out of memory ({first}); where that is far more than the file has, it is damaged: {remedy}"
        )
    return UserError(f"{path}: not a readable Parquet file ({first}); {remedy}")


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
