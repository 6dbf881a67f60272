"""Sources as people have them: nested columns, repeats, mixtures, eval sets of another shape; the ledger closes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gift.project.errors import UserError
from gift.prompts.rows import look_into, shape
from gift.prompts.settings import Prepare
from gift.prompts.sources import Prompts, prepare_prompts

WORDS = [
    *("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet"),
    *("jetty", "knoll", "ledge"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def prepared(**changes: Any) -> Prompts:
    made = prepare_prompts(Prepare.model_validate({"num_eval": 2, **changes}), seed=0)
    for split in ("train", "eval"):
        counts = {name: count for name, count in made.ledger.items() if name.startswith(f"num_{split}_")}
        assert sum(counts.values()) == 2 * counts[f"num_{split}_read"]
    return made


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepared(**changes)
    assert "\n" not in caught.value.message
    return str(caught.value.message)


def sentence(number: int, length: int = 16) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=length))


def verl_row(number: int) -> dict[str, Any]:
    return {
        "data_source": "math",
        "prompt": [{"role": "user", "content": f"{sentence(number)} {number}"}],
        "reward_model": {"ground_truth": str(number), "style": "rule"},
        "extra_info": {"index": f"i{number}"},
    }


def test_paths_go_into_structs_and_lists() -> None:
    row = {"a": {"b": [{"c": 1}, {"c": None}]}, "x.y": 5}
    assert look_into(row, "a.b.0.c") == 1
    assert look_into(row, "a.b.1.c") is None
    assert {str(look_into(row, path)) for path in ("a.b.2.c", "a.c", "a.b.c", "a.b.0.c.d")} == {
        str(look_into(row, "nothing"))
    }
    assert shape(row) == "{a: {b: list of 2 {c: int}}, x.y: int}"


def test_nested_columns_become_columns_and_their_struct_stays() -> None:
    made = prepared(source=jsonl([verl_row(n) for n in range(12)]), columns={"answer": "reward_model.ground_truth"})
    assert len(made.train) == 10
    for row in made.train:
        assert row["answer"] == row["reward_model"]["ground_truth"] == row["messages"][0]["content"].split()[-1]
        assert row.keys() == {"answer", "data_source", "reward_model", "extra_info", "messages", "prompt_id"}
    made = prepared(source="data.jsonl", columns={"prompt": "prompt.0.content"}, drop=["data_source"])
    assert made.train[0].keys() == {"prompt", "reward_model", "extra_info", "prompt_id"}


def test_a_column_whose_name_has_a_dot_is_itself() -> None:
    rows = [{"q.text": f"q{number}", "q": {"text": "no"}} for number in range(5)]
    assert {row["prompt"] for row in prepared(source=jsonl(rows), columns={"prompt": "q.text"}).train} < {
        row["q.text"] for row in rows
    }


def test_a_missing_column_shows_the_first_row() -> None:
    source = jsonl([verl_row(1), verl_row(2)])
    assert refusal(source=source, columns={"answer": "reward_model.truth"}) == (
        "params.yaml: prepare.columns.answer: 'reward_model.truth': the source has no such column; it has data_source, "
        "prompt, reward_model, extra_info; its first row is {data_source: text, prompt: list of 1 {role: text, "
        "content: text}, reward_model: {ground_truth: text, style: text}, extra_info: {index: text}}"
    )
    assert "prepare.drop: 'promt': the source has no such column" in refusal(source=source, drop=["promt"])
    message = refusal(source=source, columns={"x": "prompt"}, drop=["prompt"])
    assert "prepare.drop: 'prompt': prepare.columns maps it" in message
    assert "add it to prepare.drop" in refusal(source=source, columns={"prompt": "data_source"})


def test_rows_that_differ_only_in_dropped_columns_are_one() -> None:
    rows = [{**verl_row(n), "extra_info": {"index": f"{copy}"}} for n in range(8) for copy in range(100)]
    source = jsonl(rows)
    kept = {"columns": {"answer": "reward_model.ground_truth"}, "drop": ["extra_info", "reward_model", "data_source"]}
    made = prepared(source=source, **kept)
    assert (made.ledger["num_train_read"], made.ledger["num_train_duplicates"], len(made.train)) == (800, 792, 6)
    assert prepared(source=source).ledger["num_train_duplicates"] == 0
    # A dropped struct that a column looks into still tells rows apart.
    two = [{**verl_row(n // 2), "reward_model": {"ground_truth": str(n)}} for n in range(10)]
    assert prepared(source=jsonl(two), **kept).ledger["num_train_duplicates"] == 0


def test_repeated_prompts_are_dropped_as_asked_whatever_the_order() -> None:
    rows = [{"prompt": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(6)]
    rows += [{"prompt": f"What is {n}+{n}?", "answer": "another"} for n in range(3)]
    rows += [{"prompt": f"what is  {n}+{n}", "answer": str(2 * n)} for n in range(2)]
    source = jsonl(rows)
    assert "num_train_repeated" not in prepared(source=source).ledger
    prompts, normal = (prepared(source=source, dedup=how) for how in ("prompts", "normalized"))
    assert (prompts.ledger["num_train_repeated"], normal.ledger["num_train_repeated"]) == (3, 5)
    jsonl(rows[::-1])
    assert prepared(source=source, dedup="normalized") == normal


def test_a_normalised_twin_of_an_eval_prompt_is_not_in_train() -> None:
    source = jsonl([{"prompt": f"WHAT is {n}+{n}"} for n in range(6)])
    eval_source = jsonl([{"prompt": f"What is {n}+{n}?"} for n in range(3)], "eval.jsonl")
    assert prepared(source=source, eval_source=eval_source).ledger["num_train_in_eval"] == 0
    assert prepared(source=source, eval_source=eval_source, dedup="normalized").ledger["num_train_in_eval"] == 3


def test_an_eval_problem_in_other_words_around_it_is_not_in_train() -> None:
    source = jsonl([{"q": f"What is {n}+{n}?"} for n in range(6)])
    sources = [{"source": source, "prompt_template": "{q} Think.", "columns": {"question": "q"}}]
    evals = jsonl([{"problem": f"What is {n}+{n}?"} for n in range(2, 4)], "eval.jsonl")
    made = prepared(sources=sources, eval_sources=[{"source": evals, "prompt_template": "Solve: {problem}"}])
    assert made.ledger["num_train_in_eval"] == 2
    chats = jsonl([{"prompt": [{"role": "user", "content": "What is 0+0?"}]}, {"prompt": "x"}], "chats.jsonl")
    system = {"sources": sources, "eval_sources": [{"source": chats}], "chat": True, "system_prompt": "Be brief."}
    assert prepared(**system).ledger["num_train_in_eval"] == 1


def test_filters_have_counts_and_leave_eval_whole() -> None:
    rows = [{"prompt": f"{sentence(n)} {n}", "level": n % 3, "rate": n / 30} for n in range(30)]
    source, eval_source = jsonl(rows), jsonl(rows[:9], "eval.jsonl")
    filters = {"where": {"level": [0, 1]}, "range": {"rate": [0.3, None]}}
    made = prepared(source=source, eval_source=eval_source, filters=filters, num_eval=9)
    assert {name: count for name, count in made.ledger.items() if "filtered" in name} == {
        "num_train_filtered_where_level": 10,
        "num_train_filtered_range_rate": 6,
    }
    assert (len(made.train), len(made.eval)) == (14, 9)
    split_off = prepared(source=source, filters=filters)  # what is split off a filtered source is filtered
    assert all(row["level"] < 2 and row["rate"] >= 0.3 for row in split_off.train + split_off.eval)
    empty = jsonl([*rows, {"prompt": "", "level": 0, "rate": 1.0}], "empty.jsonl")
    assert "the prompt is empty; mend or remove the row, or leave it out by filters.length" in refusal(source=empty)
    made = prepared(source=empty, filters={"length": {"prompt": [1, None]}})
    assert made.ledger["num_train_filtered_length_prompt"] == 1


ASK = "Please solve the problem below with great care and give the final number on a line of its own: "


def test_contaminated_prompts_are_dropped_and_counted() -> None:
    evals = [{"prompt": ASK + sentence(n)} for n in range(20)]
    rows = [{"prompt": ASK + sentence(n)} for n in range(100, 130)]
    rows += [{"prompt": f"{ASK} In another town: {sentence(n)} and more."} for n in range(7)]
    source, eval_source = jsonl(rows), jsonl(evals, "eval.jsonl")
    kept = prepared(source=source, eval_source=eval_source)
    assert (kept.ledger["num_train_in_eval"], len(kept.train)) == (0, 37)
    assert "num_train_contaminated" not in kept.ledger
    # Also of the eval prompts that num_eval does not take. The instruction, in 20 eval prompts, matches nothing.
    made = prepared(source=source, eval_source=eval_source, decontaminate={"ngram": 13})
    assert made.ledger["num_train_contaminated"] == 7
    assert [row for row in kept.train if "another town" not in row["messages" if "messages" in row else "prompt"]] == (
        made.train
    )
    message = refusal(source=source, eval_source=eval_source, decontaminate={"ngram": 13, "max_prompts": 20})
    assert "no training prompt is left; 37 of 37 share 'please solve the problem below" in message
    assert "lower max_prompts" in message


def test_a_template_is_no_contamination() -> None:
    evals, rows = [{"q": sentence(n)} for n in range(3)], [{"q": sentence(n)} for n in range(2, 30)]
    rows[0]["q"] += " and so on"
    made = prepared(
        source=jsonl(rows),
        eval_source=jsonl(evals, "eval.jsonl"),
        prompt_template=ASK + "{q}",
        system_prompt=ASK,
        chat=True,
        decontaminate={"ngram": 8},
    )
    assert (made.ledger["num_train_contaminated"], len(made.train)) == (1, 27)


def test_sources_of_other_shapes_are_mixed_with_their_domain() -> None:
    maths = [{"problem": f"{sentence(n)} {n}", "solution": f"so {n}", "level": n % 5} for n in range(40)]
    code = [{"prompt": f"write {n}", "test_list": [f"assert {n}"], "id": n} for n in range(20)]
    words = "{problem}\nThink."
    sources = [
        {"source": jsonl(maths, "m.jsonl"), "domain": "math", "prompt_template": words, "drop": ["level"], "num": 20},
        {"source": jsonl(code, "c.jsonl"), "domain": "code", "columns": {"prompt_id": "id"}},
    ]
    eval_sources = [
        {"source": jsonl(maths[:6], "me.jsonl"), "domain": "math", "prompt_template": words, "num": 3},
        {"source": jsonl([{"task": "write 3"}, {"task": "write x"}], "ce.jsonl"), "columns": {"prompt": "task"}},
    ]
    made = prepared(sources=sources, eval_sources=eval_sources, chat=True, num_eval=5)
    by = {domain: [row for row in made.train if row["domain"] == domain] for domain in ("math", "code")}
    assert (len(by["math"]), len(by["code"]), len(made.eval)) == (20, 19, 5)
    assert by["math"][0].keys() == {"problem", "solution", "domain", "messages", "prompt_id"}
    assert by["math"][0]["messages"][0]["content"] == by["math"][0]["problem"] + "\nThink."
    assert {row["prompt_id"] for row in by["code"]} == {str(n) for n in range(20) if n != 3}
    assert made.ledger["num_train_in_eval"] == 7
    assert made.by_source["prepare.sources.0.source"] == {
        "num_train_read": 40,
        "num_train_duplicates": 0,
        "num_train_in_eval": 6,
        "num_train_not_taken": 14,
        "num_train_written": 20,
    }
    assert made.by_source["prepare.eval_sources.0.source"]["num_eval_not_taken"] == 3
    names = {name for counts in made.by_source.values() for name in counts}
    totals = {name: sum(counts.get(name, 0) for counts in made.by_source.values()) for name in names}
    assert totals == {name: count for name, count in made.ledger.items() if name in names}
    again = prepared(sources=sources[::-1], eval_sources=eval_sources, chat=True, num_eval=5)
    assert (again.train, again.eval) == (made.train, made.eval)


def test_a_smaller_num_of_a_source_is_part_of_a_larger() -> None:
    source = jsonl([{"prompt": f"q{n}"} for n in range(30)])
    few, more = (
        {row["prompt_id"] for row in prepared(sources=[{"source": source, "num": num}]).train} for num in (5, 12)
    )
    assert few < more
    assert "prepare.sources.0.num: 29: there are only 28 usable rows" in refusal(
        sources=[{"source": source, "num": 29}]
    )


def test_columns_of_other_types_name_a_row_of_each_source() -> None:
    numbers = jsonl([{"prompt": f"n{n}", "answer": n, "note": None} for n in range(9)], "n.jsonl")
    halves = jsonl([{"prompt": f"h{n}", "answer": n + 0.5, "note": "x"} for n in range(9)], "h.jsonl")
    texts = jsonl([{"prompt": f"t{n}", "answer": str(n)} for n in range(9)], "t.jsonl")
    flags = jsonl([{"prompt": f"f{n}", "answer": n > 4} for n in range(9)], "f.jsonl")
    assert len(prepared(sources=[{"source": numbers}, {"source": halves}]).train) == 16
    for other, kind in ((texts, "a text"), (flags, "true or false")):
        message = refusal(sources=[{"source": numbers}, {"source": other}])
        assert all(word in message for word in ("n.jsonl:", f"{other}:", "'answer' is", "a number", kind))
        mixed = prepared(
            sources=[{"source": numbers, "as_text": ["answer"]}, {"source": other, "as_text": ["answer", "prompt"]}]
        )
        assert {type(row["answer"]) for row in mixed.train} == {str}
    assert prepared(source=numbers, eval_source=texts).eval[0]["answer"].isdecimal()  # each table has its own types


def test_numbers_become_texts_before_anything_compares_them() -> None:
    cells = [72, 72.0, 0.5, -3, 10**20, True, None, float("nan"), "072", 1e300]
    source = jsonl([{"prompt": f"p{n}", "gold": {"x": cell}} for n, cell in enumerate(cells)])
    made = prepared(source=source, columns={"answer": "gold.x"}, drop=["gold"], as_text=["answer"])
    found = {row["prompt"]: row["answer"] for row in made.train + made.eval}
    expected = ["72", "72", "0.5", "-3", str(10**20), "true", None, None, "072", str(int(1e300))]
    assert [found[f"p{n}"] for n in range(len(cells))] == expected
    twins = jsonl(
        [{"prompt": "p", "answer": 7}, {"prompt": "p", "answer": "7"}, {"prompt": "r", "answer": 8}], "w.jsonl"
    )
    made = prepared(source=twins, as_text=["answer"], num_eval=1)
    assert (made.ledger["num_train_duplicates"], made.ledger["num_train_written"]) == (1, 1)
    message = refusal(source=source, as_text=["gold"])
    assert message.startswith("params.yaml: prepare.as_text: 'gold': a row has {x: int} there; only numbers")
    message = refusal(source=source, as_text=["answer"])
    assert message.startswith("params.yaml: prepare.as_text: 'answer': there is no such column; there are prompt, gold")


def test_mistakes_in_mixtures_are_one_line() -> None:
    texts = jsonl([{"prompt": f"q{n}"} for n in range(5)], "t.jsonl")
    chats = jsonl([{"prompt": [{"role": "user", "content": f"c{n}"}]} for n in range(5)], "c.jsonl")
    both = [{"source": texts}, {"source": chats}]
    assert refusal(sources=both).startswith("params.yaml: prepare.chat: False: t.jsonl:")
    assert len(prepared(sources=both, chat=True).train) == 8
    assert "prepare.columns: '...': stands in each entry of prepare.sources" in refusal(
        sources=both, columns={"a": "b"}
    )
    assert "prepare.sources.0.source: 'arithmetic': stands alone" in refusal(sources=[{"source": "arithmetic"}])
    assert "hub_config and split are only for hub:" in refusal(sources=[{"source": texts, "split": "train"}])
    ids = jsonl([{"prompt": f"other {n}", "prompt_id": "q1"} for n in range(1)], "i.jsonl")
    own = jsonl([{"prompt": f"mine {n}", "prompt_id": f"q{n}"} for n in range(4)], "o.jsonl")
    message = refusal(sources=[{"source": own}, {"source": ids}])
    assert message.startswith(
        "i.jsonl:1: prompt_id=q1 is also that of o.jsonl:2, a different row; ids must be unique: map"
    )
    domains = jsonl([{"prompt": f"d{n}", "domain": "x"} for n in range(4)], "d.jsonl")
    assert "prepare.domain: 'y': there is a column 'domain' too" in refusal(source=domains, domain="y")
