"""Filters of rows: what stays is what the rule says, and every row that goes is counted once."""

from typing import Any

import pytest

from gift.project.errors import UserError
from gift.project.sections import Section, check
from gift.prompts.files import Row
from gift.prompts.rows import keep_rows
from gift.prompts.settings import Filters, Prepare

VALUES = [
    {"q": "short", "level": "Level 5", "rate": 0.5, "ok": True, "n": 1},
    {"q": "a longer one", "level": "Level 4", "rate": 0.9, "ok": False, "n": 2},
    {"q": None, "level": None, "rate": None, "ok": None, "n": None},
    {"q": "x" * 30, "level": "Level 5", "rate": 0.2, "ok": True, "n": 3},
]
ROWS = [Row(f"d.jsonl:{number}", values) for number, values in enumerate(VALUES, start=1)]


def kept(**filters: Any) -> list[int]:
    rows, taken = keep_rows(ROWS, Filters(**filters), "prepare.filters")
    assert len(rows) + taken.total() == len(ROWS)
    return [ROWS.index(row) for row in rows]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"where": {"level": "Level 5"}}, [0, 3]),
        ({"where": {"level": ["Level 4", None]}}, [1, 2]),
        ({"where": {"ok": True}}, [0, 3]),
        ({"where": {"n": 1}}, [0]),
        ({"where": {"rate": 0.5}}, [0]),
        ({"range": {"rate": [0.2, 0.5]}}, [0, 3]),
        ({"range": {"rate": [0.5, None]}}, [0, 1]),
        ({"range": {"n": [None, 2]}}, [0, 1]),
        ({"length": {"q": [1, 12]}}, [0, 1]),
        ({"length": {"q": [None, 5]}}, [0, 2]),
    ],
)
def test_what_stays(filters: dict[str, Any], expected: list[int]) -> None:
    assert kept(**filters) == expected


def test_a_row_is_counted_at_the_first_filter_that_takes_it() -> None:
    filters = Filters(
        where={"level": "Level 5", "ok": True}, range={"rate": [0.3, 1.0]}, length={"q": [1, 10], "level": [1, 90]}
    )
    rows, taken = keep_rows(ROWS, filters, "prepare.filters")
    assert [row.where for row in rows] == ["d.jsonl:1"]
    assert taken == {"where_level": 2, "where_ok": 0, "range_rate": 1, "length_q": 0, "length_level": 0}


def test_a_number_that_nobody_knows_is_in_no_range_and_has_a_count_of_its_own() -> None:
    values = [None, float("nan"), "NaN", 0.5, 7, float("inf"), float("-inf")]
    rows = [Row(f"d.jsonl:{number}", {"rate": value}) for number, value in enumerate(values)]
    left, taken = keep_rows(rows, Filters(range={"rate": [0, 1]}), "k")
    assert left == [rows[3]]
    assert taken == {"range_rate": 3, "unknown_rate": 3}
    for bound in ([0, None], [None, 9]):
        assert keep_rows(rows, Filters(range={"rate": bound}), "k")[1]["unknown_rate"] == 3
    with pytest.raises(UserError, match=r"no row of 3 is left: 3 have null or NaN as rate"):
        keep_rows(rows[:3], Filters(range={"rate": [0, 1]}), "k")


def test_true_is_not_one_and_texts_are_not_numbers() -> None:
    with pytest.raises(UserError) as caught:
        kept(where={"ok": 1})
    assert "where.ok took 4; the values of ok are True, False, None" in caught.value.message
    with pytest.raises(UserError) as caught:
        kept(where={"level": 5})
    assert "the values of level are 'Level 5', 'Level 4', None" in caught.value.message
    assert caught.value.message.startswith("params.yaml: prepare.filters: no row of 4 is left: where.level took 4")


def test_the_text_of_a_number_is_in_a_range_and_another_text_is_refused() -> None:
    rows = [Row("d.csv:2", {"rate": "0.4"}), Row("d.csv:3", {"rate": "9"})]
    assert keep_rows(rows, Filters(range={"rate": [0, 1]}), "k")[0] == rows[:1]
    for value in ("high", True, [1]):
        with pytest.raises(UserError, match=r"d.csv:4: 'rate' is .*, no number; k\.range\.rate needs one"):
            keep_rows([Row("d.csv:4", {"rate": value})], Filters(range={"rate": [0, 1]}), "k")


def test_the_length_of_a_chat_is_that_of_its_messages() -> None:
    chat = [{"role": "system", "content": "abc"}, {"role": "user", "content": "de"}]
    rows = [Row("a", {"prompt": chat}), Row("b", {"prompt": chat[:1]})]
    assert keep_rows(rows, Filters(length={"prompt": [5, 5]}), "k")[0] == rows[:1]
    with pytest.raises(UserError, match="b: 'prompt' is 5, neither text nor chat"):
        keep_rows([Row("b", {"prompt": 5})], Filters(length={"prompt": [1, 2]}), "k")


def test_a_filter_on_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        kept(range={"difficulty": [0, 1]})
    assert caught.value.message == (
        "params.yaml: prepare.filters.range.difficulty: there is no column 'difficulty'; there are q, level, rate, ok, "
        "n"
    )


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        ({"filters": {"range": {"a": [None, None]}}}, ["prepare.filters", "range.a: [null, null] bounds nothing"]),
        ({"filters": {"length": {"a": [9, 2]}}}, ["prepare.filters", "length.a: [9, 2]", "swap them"]),
        ({"filters": {"range": {"a": [1.0]}}}, ["prepare.filters.range.a", "at least 2"]),
        ({"filters": {"where": {"a": {"b": 1}}}}, ["prepare.filters.where", "a: must be a text, a number"]),
        ({"filters": {"wher": {}}}, ["prepare.filters.wher: unknown key; did you mean 'where'?"]),
        ({"source": None}, ["prepare: needs either `source` or a list `sources`"]),
        ({"sources": [{"source": "b.jsonl"}]}, ["prepare: needs either `source` or a list `sources`"]),
        ({"eval_source": "b", "eval_sources": [{"source": "b"}]}, ["prepare: `eval_sources` stands in place of"]),
        (
            {"source": None, "sources": [{"source": "b", "colums": {}}]},
            ["prepare.sources.0.colums: unknown key; did you mean 'columns'?"],
        ),
        ({"source": None, "sources": [{"num": 3}]}, ["prepare.sources.0.source: missing; it is 'hub:"]),
        ({"chat_template_kwargs": {"tokenize": True}}, ["prepare.chat_template_kwargs", "'tokenize' is not the temp"]),
        ({"dedup": "fuzzy"}, ["prepare.dedup", "'rows', 'prompts' or 'normalized'"]),
        ({"decontaminate": {"ngram": 2}}, ["prepare.decontaminate.ngram", "greater than or equal to 3"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_key(prepare: dict[str, Any], words: list[str]) -> None:
    class Only(Section):
        prepare: Prepare

    with pytest.raises(UserError) as caught:
        check(Only, {"prepare": {"source": "a.jsonl", **prepare}}, "params.yaml")
    assert "\n" not in caught.value.message
    assert [word for word in words if word not in caught.value.message] == [], caught.value.message
