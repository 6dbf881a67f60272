"""Reading the rows of a source, one by one: local files, or a data set of the Hugging Face hub."""

import csv
import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from gift.project.errors import UserError

REACH_SECONDS = 10
BATCH = 1024
COMPRESSIONS = (".gz", ".zst")
BETWEEN = re.compile(r"[\s\[\],]*")  # the elements of a list, in JSON
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON; two of them may be one character


@dataclass(frozen=True)
class Row:
    """One row of a source, and where it stands (file and line), for messages."""

    where: str
    values: dict[str, Any]


def local_files(source: str, key: str) -> list[Path]:
    """The files that a source names, in the order of their names: a file, all in a folder, or those of a pattern (*).

    A folder holds one kind of data file; others in it (README.md) are passed over. `key` is the source's key in
    params.yaml.
    """
    path = Path(source)
    where = f"params.yaml: {key}: '{source}'"
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file() and _kind(each) in READERS)
        kinds = sorted({_kind(each) for each in files})
        if len(kinds) > 1:
            pattern = path / f"*{kinds[0]}"
            raise UserError(f"{where}: the folder holds {' and '.join(kinds)} files; name one kind: '{pattern}'")
    elif "*" in source:
        files = sorted(each for each in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if each.is_file())
    else:
        files = [path]
    if wrong := next((each for each in files if _kind(each) not in READERS), None):
        raise UserError(
            f"{where}: {'' if wrong == path else f'{wrong}: '}must be 'arithmetic', 'hub:<dataset id>', or files that "
            f"end in {', '.join(READERS)} (also with {' or '.join(COMPRESSIONS)}, Parquet aside)"
        )
    if not files or not files[0].is_file():
        raise UserError(f"{where}: no such file (a data set of the hub is written hub:<dataset id>)")
    return files


def read_local(source: str, key: str) -> Iterator[Row]:
    """The rows of a source's files. CSV values stay texts: nothing is guessed. A file without a row is refused."""
    for path in local_files(source, key):
        empty = True
        try:
            for row in READERS[_kind(path)](path):
                empty = False
                yield row
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch it again") from None
        if empty:
            raise UserError(f"{path}: there is no row in it")


def _kind(path: Path) -> str:
    """`.jsonl` of data.jsonl and of data.jsonl.gz."""
    inner = Path(path.stem).suffix
    return inner if path.suffix in COMPRESSIONS and inner != ".parquet" else path.suffix


def _open(path: Path, newline: str | None = None) -> TextIO:
    if path.suffix not in COMPRESSIONS:
        return path.open(encoding="utf-8-sig", newline=newline)
    return io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8-sig", newline=newline)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(f"{path}:{number}", _parse(line.strip(), path, number))


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        content = _parse(file.read(), path, 1)
    if not isinstance(content, list):
        raise UserError(f"{path}: must be a list of objects, not a {type(content).__name__}")
    for number, value in enumerate(content):
        yield _row(f"{path}: row {number}", value)


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object of columns and values, not a {type(value).__name__}")
    return Row(where, value)


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except _RepeatedKey as error:
        before = _lines_before(text)
        problem = f"an object has the key '{error}' twice, and only one of the two values could be read"
    except RecursionError:
        before, problem = 0, "is nested too deeply to be read"
    except UnicodeEncodeError:
        before, problem = 0, "holds half of a surrogate pair, which is no character"
    except json.JSONDecodeError as error:
        before, problem = error.lineno - 1, f"not valid JSON: {error.msg} (column {error.colno})"
    raise UserError(f"{path}:{first_line + before}: {problem}; mend or remove it")


class _RepeatedKey(Exception):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; json.loads alone keeps the last of two values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return found


def _lines_before(text: str) -> int:
    """How many lines stand before the first element of a list (or the one value) that holds a repeated key."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    place = 0
    while True:
        place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
        try:
            _, place = decoder.raw_decode(text, place)
        except _RepeatedKey:
            return text.count("\n", 0, place)


def _read_csv(path: Path) -> Iterator[Row]:
    with _open(path, newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            names = next(lines, [])
            if len(set(names)) != len(names) or "" in names:
                raise UserError(f"{path}:1: the first line must name every column once; it has {', '.join(names)}")
            for values in lines:
                where = f"{path}:{lines.line_num}"
                if values and len(values) != len(names):  # without values it is an empty line
                    problem = f"has {len(values)} values for {len(names)} columns"
                    raise UserError(f"{where}: {problem}; mend or remove the line")
                if values:
                    yield Row(where, dict(zip(names, values, strict=True)))
        except csv.Error as error:
            raise UserError(f"{path}:{lines.line_num}: not valid CSV: {error}; mend or remove the line") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UserError(f"{path}: has two columns '{twice}', and only one could be read; rename one")
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(BATCH))
            for number, values in enumerate(rows):
                yield Row(f"{path}: row {number}", values)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); fetch it again") from None


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def read_hub(dataset_id: str, config: str | None, split: str, key: str) -> Iterator[Row]:
    """The rows of a split of a hub data set; without a network, of the copy in the hub's cache."""
    where = f"params.yaml: {key}: 'hub:{dataset_id}'"
    if not _hub_is_reachable():
        # Read when datasets is imported: it then looks into its cache at once, instead of retrying for half a minute.
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    if not os.environ.get("GIFT_VERBOSE"):
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset_id, config, split=split).with_format("arrow")
    except Exception as error:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            reason = "the hub cannot be reached, and its cache has no copy"
            remedy = "use a network, set HF_HOME to a cache that has it, or name a local .jsonl/.csv/.parquet file"
        else:
            reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            remedy = "check the id, the configuration and the splits (a gated one needs HF_TOKEN), or name a local file"
        raise UserError(f"{where}: split '{split}' cannot be loaded: {reason}; {remedy}") from None
    if not len(rows):
        raise UserError(f"{where}: split '{split}' has no row")
    for number, values in enumerate(chain.from_iterable(table.to_pylist() for table in rows.iter(BATCH))):
        yield Row(f"hub:{dataset_id}, {split}, row {number}", values)


def _hub_is_reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it answers
    return True
