"""Tables are strict: same rows are the same bytes, and whatever is not whole, sorted, typed and finite is refused."""

import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gift.project.errors import UserError
from gift.tables.parquet import part_name, part_paths, read_file, write_file
from gift.tables.parts import check_key, read_part, read_table, write_part
from gift.tables.rollouts import ROLLOUTS, check_rollouts

METADATA = {"artifact": "rollouts", "policy": "abc"}


def rows(num_groups: int = 2, size: int = 2, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{group:03d}",
            "sample": sample,
            "prompt_ids": [1, 2],
            "completion_ids": [3] * (sample + 1),
            "completion": "x",
            "rollout_logprobs": [-0.5] * (sample + 1),
            "finish_reason": "stop",
            "seed": 7,
        }
        for group in range(first, first + num_groups)
        for sample in range(size)
    ]


def write(folder: Path, index: int, content: list[dict[str, Any]], metadata: dict[str, Any] | None = None) -> None:
    table = pa.Table.from_pylist(content, schema=ROLLOUTS)
    write_part(folder, index, table, ROLLOUTS, check_rollouts, metadata or METADATA)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, 0, rows())
        write(tmp_path / folder, 1, rows(first=2))
    table, metadata = read_table(tmp_path / "a", ROLLOUTS, check_rollouts)
    assert table.to_pylist() == rows(4)
    assert metadata["policy"] == "abc"
    for name in (part_name(0), part_name(1)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "empty completion": ({"completion_ids": [], "rollout_logprobs": []}, "completion_ids is empty"),
    "empty prompt": ({"prompt_ids": []}, "prompt_ids is empty"),
    "ragged": ({"rollout_logprobs": [-0.5, -0.5, -0.5]}, "rollout_logprobs is not as long as the completion"),
    "nan": ({"rollout_logprobs": [-0.5, float("nan")]}, "rollout_logprobs holds nan"),
    "positive": ({"rollout_logprobs": [-0.5, 0.5]}, "rollout_logprobs holds 0.5"),
    "infinite": ({"rollout_logprobs": [float("-inf"), -1.0]}, "rollout_logprobs holds -inf"),
    "finish": ({"finish_reason": "abort"}, "finish_reason must be one of"),
    "null": ({"completion": None}, "row 3: 'completion' is null"),
    "duplicate": ({"sample": 0}, "the key prompt_id=p001, sample=0 occurs twice"),
    "unsorted": ({"prompt_id": "p000", "sample": 5}, "rows must be sorted"),
    "given": ({"finish_reason": "given"}, "a given answer has rollout_logprobs, but no sampler drew it"),
    "given, one group": (
        {"finish_reason": "given", "rollout_logprobs": [], "seed": -1},
        "given answers must stand behind what was sampled, as many in every group",
    ),
    "hole": ({"sample": 2}, "every group must have samples 0 to 1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_row_is_refused_by_name_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    content = rows()
    content[3] |= change
    with pytest.raises(UserError, match=message):
        write(tmp_path / "t", 0, content)
    assert not (tmp_path / "t").exists() or not list((tmp_path / "t").iterdir())
    # Written behind our back, it is refused when read.
    table = pa.Table.from_pylist(content, schema=pa.schema([field.with_nullable(True) for field in ROLLOUTS]))
    write_file(tmp_path / "t" / part_name(0), table, METADATA)
    with pytest.raises(UserError, match=message):
        read_part(tmp_path / "t" / part_name(0), ROLLOUTS, check_rollouts)


def test_wrong_columns_and_types_are_refused(tmp_path: Path) -> None:
    good = pa.Table.from_pylist(rows(), schema=ROLLOUTS)
    wrong = {
        "the column 'seed' is missing": good.drop_columns(["seed"]),
        "unexpected column 'more'": good.append_column("more", pa.array([1] * 4)),
        "'sample' has type int64, must be int32": good.set_column(1, "sample", good["sample"].cast(pa.int64())),
        "stand in the order": good.select(ROLLOUTS.names[::-1]),
    }
    for message, table in wrong.items():
        path = tmp_path / part_name(0)
        write_file(path, table, METADATA)
        with pytest.raises(UserError, match=message):
            read_part(path, ROLLOUTS, check_rollouts)


def test_parts_are_without_gap_and_of_one_run(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "t", index, rows(first=2 * index))
    (tmp_path / "t" / part_name(1)).unlink()
    with pytest.raises(
        UserError, match=r"part-00002.parquet: unexpected file; the table's next part must be part-00001"
    ):
        part_paths(tmp_path / "t")
    write(tmp_path / "t", 1, rows(first=2), {**METADATA, "policy": "other"})
    with pytest.raises(UserError, match="was not made in the same run"):
        read_table(tmp_path / "t", ROLLOUTS, check_rollouts)
    write(tmp_path / "t", 1, rows(first=0))
    with pytest.raises(UserError, match=r"occurs twice|must be sorted"):
        read_table(tmp_path / "t", ROLLOUTS, check_rollouts)
    with pytest.raises(UserError, match="no such table"):
        part_paths(tmp_path / "missing")


def wrong_rows(content: list[dict[str, Any]]) -> set[int]:
    """The rows that break a law of the rollouts on their own or after the row before; plain Python."""
    wrong = set()
    for row, each in enumerate(content):
        logprobs, given = each["rollout_logprobs"], each["finish_reason"] == "given"
        if not each["prompt_ids"] or not each["completion_ids"]:
            wrong.add(row)
        if len(logprobs) != (0 if given else len(each["completion_ids"])) or given != (each["seed"] == -1):
            wrong.add(row)
        if each["finish_reason"] not in ("stop", "length", "given") or not all(
            -math.inf < value <= 1e-3 for value in logprobs
        ):
            wrong.add(row)
        if row and (each["prompt_id"], each["sample"]) <= (content[row - 1]["prompt_id"], content[row - 1]["sample"]):
            wrong.add(row)
    return wrong


ROW = st.fixed_dictionaries(
    {},
    optional={
        "prompt_id": st.sampled_from(["p000", "p001", "\u00e9", "z", "\U0001f600", "\uffff"]),
        "sample": st.integers(-1, 3),
        "prompt_ids": st.lists(st.integers(0, 9), max_size=2),
        "completion_ids": st.lists(st.integers(0, 9), max_size=3),
        "rollout_logprobs": st.lists(
            st.sampled_from([-1.0, 0.0, 5e-4, 0.5, math.nan, math.inf, -math.inf]), max_size=3
        ),
        "finish_reason": st.sampled_from(["stop", "length", "abort", "given"]),
        "seed": st.sampled_from([-1, 0]),
    },
)
GIVEN = {"finish_reason": "given", "rollout_logprobs": [], "seed": -1}


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.integers(0, 5), ROW | st.just(GIVEN), max_size=3))
def test_a_fuzzed_table_is_refused_by_a_row_that_plain_python_finds_wrong(changes: dict[int, dict[str, Any]]) -> None:
    content = [{**row, **changes.get(index, {})} for index, row in enumerate(rows(3))]
    wrong = wrong_rows(content)
    sizes: dict[str, list[int]] = {}
    for each in content:
        sizes.setdefault(each["prompt_id"], []).append(each["sample"])
    whole = len({len(samples) for samples in sizes.values()}) == 1
    whole &= all(samples == list(range(len(samples))) for samples in sizes.values())
    num_sampled = sum(each["prompt_id"] == "p000" and each["finish_reason"] != "given" for each in content)
    placed = all((each["finish_reason"] == "given") == (each["sample"] >= num_sampled) for each in content)
    placed &= num_sampled > 0
    message = ""
    try:
        table = pa.Table.from_pylist(content, schema=ROLLOUTS)
        check_key(table, Path("t"))
        check_rollouts(table, Path("t"))
    except UserError as error:
        message = error.message
    named = re.match(r"t: row (\d+)", message)
    assert bool(message) == bool(wrong or not whole or not placed)
    assert named is None or int(named[1]) in wrong or not placed
    assert named or not wrong


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A cut, or a changed byte: refused in one message that names the file, unless the rows are still the same."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / part_name(0)
    write(folder, 0, rows())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found, message = None, ""
    try:
        found = read_part(path, ROLLOUTS, check_rollouts)[0].to_pylist()
    except UserError as error:
        message = error.message
    assert found == rows() or str(path) in message


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="was not written by this pipeline"):
        read_file(path)
    write_file(path, pa.table({"a": [1]}), {"schema_version": 2})
    with pytest.raises(UserError, match="has schema version 2, this code reads 1"):
        read_file(path)
