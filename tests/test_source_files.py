"""Reading local sources: one file or many, plain or compressed, give the same rows in the same order."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift.project.errors import UserError
from gift.prompts.files import Row, local_files, read_local

ROWS = [{"question": f"Wieviel ist {number}? ä", "answer": str(number)} for number in range(3000)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(source: str) -> list[Row]:
    return list(read_local(source, "prepare.source"))


def refusal(source: str) -> str:
    with pytest.raises(UserError) as caught:
        read(source)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_compressed_files_are_the_plain_ones() -> None:
    Path("a.jsonl").write_bytes(text(ROWS))
    Path("a.jsonl.gz").write_bytes(gzip.compress(text(ROWS)))
    Path("a.jsonl.zst").write_bytes(zstd(text(ROWS)))
    Path("a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    Path("a.csv.gz").write_bytes(gzip.compress(b"question,answer\nx,1\n"))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz"):
        assert [row.values for row in read(name)] == ROWS, name
    assert read("a.jsonl.gz")[41].where == "a.jsonl.gz:42"
    assert [row.values for row in read("a.csv.gz")] == [{"question": "x", "answer": "1"}]


def test_a_file_whose_name_is_no_utf_8_is_read() -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    Path(name).write_bytes(text(ROWS[:1]))
    assert [row.values for row in read(name)] == ROWS[:1]


def test_a_key_or_column_that_stands_twice_is_refused_and_not_the_last_one_taken() -> None:
    good, twice = '{"q": "[{,", "a": [[1], {"b": 2}]}', '{"q": 1, "c": {"a": "right", "a": "wrong"}}'
    Path("a.jsonl").write_text(f"{good}\n\n{good}\n{twice}\n")
    assert refusal("a.jsonl").startswith("a.jsonl:4: an object has the key 'a' twice")
    Path("a.json").write_text(f"[\n{good},\n\n{good}, [[3]],\n{twice}, {twice}\n]")
    assert refusal("a.json").startswith("a.json:5: an object has the key 'a' twice")
    Path("b.json").write_text(f"[{good}, {good}]")
    assert [row.values for row in read("b.json")] == [json.loads(good)] * 2
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), "a.parquet")
    assert refusal("a.parquet").startswith("a.parquet: has two columns 'a'")


def test_damaged_compressed_files_are_refused_by_name() -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(text(ROWS))[:-2000])
    assert refusal("a.jsonl.gz").startswith("a.jsonl.gz: cannot be read (")
    Path("b.jsonl.zst").write_bytes(b"no zstd at all")
    assert refusal("b.jsonl.zst").startswith("b.jsonl.zst: cannot be read (")
    Path("c.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"a": \n'))
    assert refusal("c.jsonl.gz").startswith("c.jsonl.gz:2: not valid JSON")


def test_a_folder_is_its_files_in_the_order_of_their_names() -> None:
    Path("shards").mkdir()
    cuts = [0, 1100, 1100 + 1, 3000]
    for number, name in enumerate(("train-00000.parquet", "train-00001.parquet", "train-00002.parquet")):
        pq.write_table(pa.Table.from_pylist(ROWS[cuts[number] : cuts[number + 1]]), f"shards/{name}")
    Path("shards/README.md").write_text("about")
    assert [row.values for row in read("shards")] == ROWS
    assert [row.values for row in read("shards/train-*.parquet")] == ROWS
    assert [row.values for row in read("shards/*1.parquet")] == ROWS[1100:1101]
    assert read("shards")[1100].where == "shards/train-00001.parquet: row 0"
    assert read("shards")[1099].where == "shards/train-00000.parquet: row 1099"


def test_a_folder_of_two_kinds_or_none_is_refused() -> None:
    Path("mixed").mkdir()
    assert refusal("mixed").startswith("params.yaml: prepare.source: 'mixed': no such file")
    Path("mixed/a.jsonl").write_bytes(text(ROWS[:1]))
    Path("mixed/dataset_infos.json").write_text("{}")
    assert refusal("mixed").endswith("the folder holds .json and .jsonl files; name one kind: 'mixed/*.json'")
    assert refusal("mixed/*.csv").startswith("params.yaml: prepare.source: 'mixed/*.csv': no such file")


def test_a_pattern_names_the_file_that_is_no_data() -> None:
    Path("a.txt").write_text("x")
    assert "'a.*': a.txt: must be 'arithmetic'" in refusal("a.*")
    assert "'a.parquet.gz': must be" in refusal("a.parquet.gz")


def test_an_empty_file_among_others_is_refused() -> None:
    Path("shards").mkdir()
    Path("shards/0.jsonl").write_bytes(text(ROWS[:2]))
    Path("shards/1.jsonl").write_text("\n")
    assert refusal("shards") == "shards/1.jsonl: there is no row in it"


def test_rows_come_one_by_one() -> None:
    """A fault behind the first batch does not keep the rows before it from coming."""
    Path("a.jsonl").write_bytes(text(ROWS[:5]) + b"{\n")
    rows = read_local("a.jsonl", "prepare.source")
    assert [next(rows).values for _ in range(5)] == ROWS[:5]
    with pytest.raises(UserError, match=r"a\.jsonl:6: not valid JSON"):
        next(rows)


def test_the_order_of_files_is_that_of_names() -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        Path(name).write_text("x\n1\n")
    assert [path.name for path in local_files("*.csv", "prepare.source")] == ["a.csv", "b.csv", "c.csv"]
