"""Reading the rows of a source: a local .jsonl, .json, .csv or .parquet file, or a data set of the Hugging Face hub."""

import csv
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gift.errors import UserError

REACH_SECONDS = 10


@dataclass(frozen=True)
class Row:
    """One row of a source, and where it stands (file and line), for messages."""

    where: str
    values: dict[str, Any]


def read_local(path: Path, key: str) -> list[Row]:
    """The rows of a file; `key` is the params.yaml key that names it. CSV values stay texts: nothing is guessed."""
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(
            f"params.yaml: {key}: '{path}': must be 'arithmetic', 'hub:<dataset id>', or a file that ends in "
            f"{', '.join(readers)}"
        )
    if not path.is_file():
        raise UserError(
            f"params.yaml: {key}: '{path}': no such file (a data set of the hub is written hub:<dataset id>)"
        )
    try:
        rows = list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from None
    if not rows:
        raise UserError(f"{path}: there is no row in it")
    return rows


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Row(f"{path}:{number}", _object(_parse(line.strip(), path, number), f"{path}:{number}"))


def _read_json(path: Path) -> Iterator[Row]:
    content = _parse(path.read_text(encoding="utf-8-sig"), path, 1)
    if not isinstance(content, list):
        raise UserError(f"{path}: must be a list of objects, not a {type(content).__name__}")
    for number, value in enumerate(content):
        yield Row(f"{path}: row {number}", _object(value, f"{path}: row {number}"))


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(
            f"{path}:{line}: not valid JSON: {error.msg} (column {error.colno}); mend or remove it"
        ) from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object of columns and values, not a {type(value).__name__}")
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            names = next(lines, [])
            if len(set(names)) != len(names) or "" in names:
                raise UserError(f"{path}:1: the first line must name every column once; it has {', '.join(names)}")
            for values in lines:
                where = f"{path}:{lines.line_num}"
                if not values:
                    continue  # an empty line
                if len(values) != len(names):
                    raise UserError(
                        f"{where}: has {len(values)} values for {len(names)} columns; mend or remove the line"
                    )
                yield Row(where, dict(zip(names, values, strict=True)))
        except csv.Error as error:
            raise UserError(f"{path}:{lines.line_num}: not valid CSV: {error}; mend or remove the line") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        rows = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); fetch it again") from None
    for number, row in enumerate(rows):
        yield Row(f"{path}: row {number}", row)


def read_hub(dataset_id: str, config: str | None, split: str, key: str) -> list[Row]:
    """The rows of a split of a hub data set; without a network, of the copy in the hub's cache."""
    where = f"params.yaml: {key}: 'hub:{dataset_id}'"
    if not _hub_is_reachable():
        # Read when datasets is imported: it then looks into its cache at once, instead of retrying for half a minute.
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    if not os.environ.get("GIFT_VERBOSE"):
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset_id, config, split=split).to_list()
    except Exception as error:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = "the hub cannot be reached, and its cache has no copy" if offline else _first_line(error)
        remedy = (
            "use a network, set HF_HOME to a cache that has it, or name a local .jsonl/.csv/.parquet file"
            if offline
            else "check the id, prepare.hub_config and the splits (a gated one needs HF_TOKEN), or name a local file"
        )
        raise UserError(f"{where}: split '{split}' cannot be loaded: {reason}; {remedy}") from None
    return [Row(f"hub:{dataset_id}, {split}, row {number}", row) for number, row in enumerate(rows)]


def _hub_is_reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answers
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
