"""Sources to prompts tables: ids, duplicates, splits, ledgers; every fault of a source is one clear message."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gift.embedded.task import Arithmetic
from gift.project.errors import UserError
from gift.prompts.settings import Prepare
from gift.prompts.sources import prepare_prompts
from gift.tables.prompts import prompts_table, read_prompts, write_prompts
from stages.prepare import main

ROOT = Path(__file__).parents[1]
ROWS = [{"question": f"What is {number}?", "answer": f"#### {number}", "level": number % 3} for number in range(60)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(rows: list[Any], name: str = "data.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def settings(source: str, **changes: Any) -> Prepare:
    return Prepare(
        **{
            "source": source,
            "columns": {"prompt": "question"},
            "num_eval": 10,
            **changes,
        }
    )


def refusal(source: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare_prompts(settings(source, **changes), seed=0)
    return str(caught.value.message)


def test_arithmetic_is_seeded_and_its_splits_are_disjoint() -> None:
    choice = Prepare(source="arithmetic", num_train=300, num_eval=50)
    made, again, other = (prepare_prompts(choice, seed) for seed in (0, 0, 1))
    assert (len(made.train), len(made.eval)) == (300, 50)
    assert made == again
    assert made.train != other.train
    assert not {row["prompt"] for row in made.train} & {row["prompt"] for row in made.eval}
    assert made.train[0].keys() == {"prompt", "answer", "prompt_id"}
    with_it = prepare_prompts(choice, 0, Arithmetic(solution=True))
    assert {row["prompt"] for row in with_it.train} == {row["prompt"] for row in made.train}
    assert with_it.train[0].keys() == {"prompt", "answer", "solution", "prompt_id"}


def test_a_mapped_column_is_renamed_and_every_other_is_kept() -> None:
    made = prepare_prompts(settings(jsonl(ROWS)), seed=0)
    rows = sorted(made.train + made.eval, key=lambda row: int(row["prompt"][8:-1]))
    without_ids = [{name: value for name, value in row.items() if name != "prompt_id"} for row in rows]
    assert without_ids == [{"prompt": row["question"], "answer": row["answer"], "level": row["level"]} for row in ROWS]
    assert all(len(row["prompt_id"]) == 16 for row in rows)
    assert made.train == sorted(made.train, key=lambda row: row["prompt_id"])


def test_the_four_file_formats_give_the_same_prompts() -> None:
    rows = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    jsonl(rows)
    Path("data.json").write_text(json.dumps(rows), encoding="utf-8")
    Path("data.csv").write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), "data.parquet")
    made = [prepare_prompts(settings(f"data.{end}"), seed=3) for end in ("jsonl", "json", "csv", "parquet")]
    assert made[0].train
    assert all(each == made[0] for each in made)


def test_csv_values_stay_texts() -> None:
    Path("data.csv").write_text("question,answer\n" + "".join(f"q{number},00{number}\n" for number in range(20)))
    made = prepare_prompts(settings("data.csv"), seed=0)
    assert {row["answer"] for row in made.train + made.eval} == {f"00{number}" for number in range(20)}


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    choice = settings(jsonl(ROWS), num_train=20)
    made = prepare_prompts(choice, seed=0)
    jsonl(ROWS[::-1])
    assert prepare_prompts(choice, seed=0) == made
    assert prepare_prompts(choice, seed=1).eval != made.eval
    more = prepare_prompts(settings("data.jsonl", num_train=21), seed=0)
    assert {row["prompt_id"] for row in made.train} < {row["prompt_id"] for row in more.train}
    assert more.eval == made.eval


def test_every_row_is_counted() -> None:
    again = {**ROWS[0], "level": 7}  # the same prompt, another row
    evals = [ROWS[3], ROWS[4], {"question": "Why?", "answer": "#### 1"}, ROWS[3]]
    source, eval_source = jsonl([*ROWS, ROWS[5], ROWS[5], again]), jsonl(evals, "eval.jsonl")
    made = prepare_prompts(settings(source, eval_source=eval_source, num_eval=2, num_train=50), seed=0)
    assert made.ledger == {
        "num_train_read": 63,
        "num_train_duplicates": 2,
        "num_train_split_off": 0,
        "num_train_in_eval": 2,
        "num_train_not_taken": 9,
        "num_train_written": 50,
        "num_eval_read": 4,
        "num_eval_duplicates": 1,
        "num_eval_not_taken": 1,
        "num_eval_written": 2,
    }
    assert not {"What is 3?", "What is 4?"} & {row["prompt"] for row in made.train}


def test_a_split_off_prompt_is_nowhere_in_train() -> None:
    twins = [{**row, "level": 9} for row in ROWS]  # every prompt twice, in different rows
    made = prepare_prompts(settings(jsonl(ROWS + twins)), seed=0)
    assert not {row["prompt"] for row in made.train} & {row["prompt"] for row in made.eval}
    overlap, split_off = made.ledger["num_train_in_eval"], made.ledger["num_train_split_off"]
    assert split_off == 10
    assert 0 < overlap <= 10
    assert len(made.train) == 120 - split_off - overlap


def test_ids_of_the_source_are_kept_and_a_second_one_is_refused() -> None:
    rows = [{**row, "id": f"q{number}"} for number, row in enumerate(ROWS)]
    columns = {"prompt": "question", "prompt_id": "id"}
    made = prepare_prompts(settings(jsonl([*rows, rows[3]]), columns=columns), seed=0)
    assert {row["prompt_id"] for row in made.train + made.eval} == {f"q{number}" for number in range(60)}
    assert made.ledger["num_train_duplicates"] == 1
    message = refusal(jsonl([*rows, {**rows[3], "answer": "another"}]), columns=columns)
    assert message == (
        "data.jsonl:61: prompt_id=q3 is also that of data.jsonl:4, a different row; ids must be unique: map no column "
        "to prompt_id, and they are made of the rows"
    )
    assert "data.jsonl:2: prompt_id is empty" in refusal(jsonl([rows[0], {**rows[1], "id": " "}]), columns=columns)


def test_the_id_is_that_of_the_problem_not_of_its_wording() -> None:
    source = jsonl(ROWS)
    plain = prepare_prompts(settings(source), seed=0)
    worded = prepare_prompts(settings(source, prompt_template="{question} ({level}) {{x}}", chat=True), seed=0)
    assert [row["prompt_id"] for row in plain.train] == [row["prompt_id"] for row in worded.train]
    first = plain.train[0]
    content = f"{first['prompt']} ({first['level']}) {{x}}"
    assert worded.train[0]["messages"] == [{"role": "user", "content": content}]
    assert "prompt" not in worded.train[0]


def test_chats_of_the_source_become_messages() -> None:
    rows = [{"prompt": [{"role": "user", "content": f"q{number}", "name": None}], "n": number} for number in range(20)]
    made = prepare_prompts(settings(jsonl(rows), columns={}, system_prompt="Be brief."), seed=0)
    for row in made.train:
        system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": f"q{row['n']}"}
        assert row["messages"] == [system, user]
    renamed = jsonl([{"messages": row["prompt"]} for row in rows])
    assert prepare_prompts(settings(renamed, columns={}), seed=0).train[0]["messages"][0]["role"] == "user"


def chat(*messages: tuple[str, Any], **extra: Any) -> list[dict[str, Any]]:
    return [{"messages": [{"role": role, "content": content, **extra} for role, content in messages]}]


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (ROWS, {"columns": {"prompt": "problem"}}, ["prepare.columns.prompt", "'problem'", "question, answer, level"]),
        (ROWS, {"columns": {}}, ["prepare.columns", "nothing is the prompt", "question, answer, level"]),
        (ROWS, {"columns": {"answer": "question"}}, ["prepare.columns.answer", "a column 'answer' too"]),
        ([{"prompt": "a", "messages": []}], {"columns": {}}, ["both a prompt and messages"]),
        ([ROWS[0], {**ROWS[1], "question": " "}], {}, ["data.jsonl:2", "prompt is empty", "mend or remove"]),
        ([ROWS[0], {"answer": "1"}], {}, ["data.jsonl:2", "prompt is empty"]),
        ([{"question": 5}], {}, ["data.jsonl:1", "is a int"]),
        (ROWS, {"num_train": 51}, ["prepare.num_train", "51", "only 50 usable rows"]),
        (ROWS, {"num_eval": 60}, ["prepare.num_eval", "60 different rows"]),
        (ROWS, {"prompt_template": "{problem}"}, ["prepare.prompt_template", "no column 'problem'", "question"]),
        (ROWS, {"prompt_template": "boxed{}"}, ["prepare.prompt_template", "no column ''", "{{"]),
        (ROWS, {"prompt_template": "{question"}, ["prepare.prompt_template", "expected '}'", "{{"]),
        (ROWS, {"prompt_template": "Say it."}, ["prepare.prompt_template", "names no column"]),
        (ROWS, {"prompt_template": "{question.x}"}, ["data.jsonl:1", "AttributeError"]),
        (ROWS, {"system_prompt": "Be brief."}, ["prepare.system_prompt", "prepare.chat"]),
        (ROWS, {"chat_template_kwargs": {"x": 1}}, ["prepare.chat_template_kwargs: x", "texts", "prepare.chat"]),
        (ROWS, {"eval_split": "test"}, ["prepare.eval_split", "prepare.eval_source"]),
        (ROWS, {"eval_source": "hub:a/b"}, ["prepare.eval_source", "prepare.eval_split"]),
        (ROWS, {"hub_config": "main"}, ["prepare.hub_config"]),
        (ROWS, {"eval_source": "none.jsonl"}, ["prepare.eval_source", "'none.jsonl'", "no such file"]),
        (chat(("user", "q"), ("assistant", "a")), {"columns": {}}, ["data.jsonl:1", "last message is the assistant's"]),
        (chat(("human", "q")), {"columns": {}}, ["data.jsonl:1", "'human'", "system, user, assistant, tool"]),
        (chat(("user", "")), {"columns": {}}, ["data.jsonl:1", "message 0 (user) has no text"]),
        (chat(("user", "q"), name="x"), {"columns": {}}, ["data.jsonl:1", "'name'"]),
        ([{"messages": ["q"]}], {"columns": {}}, ["data.jsonl:1", "must have a role and a content"]),
        (
            chat(("system", "s"), ("user", "q")),
            {"columns": {}, "system_prompt": "x"},
            ["data.jsonl:1", "system message"],
        ),
        ([1, 2], {}, ["data.jsonl:1", "must be an object"]),
        ([], {}, ["data.jsonl", "no row"]),
    ],
)
def test_a_fault_is_one_message_with_its_place(rows: list[Any], changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(jsonl(rows), **changes)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_broken_files_are_refused_by_line() -> None:
    Path("data.jsonl").write_text('{"question": "a"}\n\n{"question": \n')
    assert refusal("data.jsonl").startswith("data.jsonl:3: not valid JSON: ")
    Path("data.json").write_text('[{"question": "a"},\n {"question": }]')
    assert refusal("data.json").startswith("data.json:2: not valid JSON: ")
    Path("data.csv").write_text("question,answer\na,b\na\n")
    assert refusal("data.csv") == "data.csv:3: has 1 values for 2 columns; mend or remove the line"
    Path("data.csv").write_text("question,question\na,b\n")
    assert refusal("data.csv").startswith("data.csv:1: the first line must name every column once")
    Path("data.parquet").write_bytes(b"PAR1 broken")
    assert "data.parquet: not a readable Parquet file" in refusal("data.parquet")
    Path("data.jsonl").write_bytes(b'{"question": "\xff"}')
    assert "data.jsonl: is not UTF-8" in refusal("data.jsonl")
    pair, half = '{"question": "\\ud83d\\ude00"}\n', '{"question": "a", "notes": [{"b": "\\uD83d"}]}\n'
    Path("data.jsonl").write_text(pair * 2 + half)
    assert refusal("data.jsonl").startswith("data.jsonl:3: holds half of a surrogate pair")
    Path("data.jsonl").write_text(pair + "[" * 100_000 + "]" * 100_000)
    assert refusal("data.jsonl").startswith("data.jsonl:2: is nested too deeply")
    assert "must be 'arithmetic', 'hub:<dataset id>', or files" in refusal("aritmetic")


def test_columns_of_mixed_types_are_refused_by_name(folder: Path) -> None:
    rows = [{"prompt_id": "a", "prompt": "p", "answer": 1}, {"prompt_id": "b", "prompt": "q", "answer": "two"}]
    with pytest.raises(UserError, match=r"train\.parquet: column 'answer' cannot be stored"):
        prompts_table(rows, folder / "train.parquet")
    surrogate = [{"prompt_id": "a", "prompt": "p", "answer": "\ud800"}]
    with pytest.raises(UserError, match="column 'answer' cannot be stored"):
        prompts_table(surrogate, folder / "train.parquet")


def test_columns_that_parquet_has_no_type_for_are_refused_by_name(folder: Path) -> None:
    rows = [{"prompt_id": "a", "prompt": "p", "extra": {}}]
    with pytest.raises(UserError, match=r"train\.parquet: cannot be stored \(.*'extra'.*\); leave .* prepare\.drop"):
        write_prompts(folder / "train.parquet", prompts_table(rows, folder / "train.parquet"), {})


GOOD = {"prompt_id": ["a", "b"], "prompt": ["p", "q"], "answer": ["1", None]}
MESSAGES = [[{"role": "user", "content": "q"}]] * 2


def test_a_prompts_table_comes_back_whole() -> None:
    chats = prompts_table([{"messages": MESSAGES[0], "extra": {"x": [1]}, "prompt_id": "a"}], Path("x"))
    assert chats.column_names == ["prompt_id", "messages", "extra"]
    for table in (pa.table(GOOD), pa.table({**GOOD, "domain": ["math", None]}), chats):
        write_prompts(Path("p.parquet"), table, {"artifact": "prompts"})
        back, metadata = read_prompts(Path("p.parquet"))
        assert back.equals(table)
        assert metadata["artifact"] == "prompts"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({**GOOD, "prompt_id": ["a", "a"]}, ["row 1", "prompt_id=a", "row 0"]),
        ({**GOOD, "prompt_id": ["a", ""]}, ["row 1", "prompt_id is empty"]),
        ({**GOOD, "prompt_id": ["a", None]}, ["row 1", "prompt_id is empty"]),
        ({**GOOD, "prompt_id": [1, 2]}, ["'prompt_id' has type int64"]),
        ({**GOOD, "prompt": ["p", "\n"]}, ["row 1 (prompt_id=b)", "prompt is empty"]),
        ({**GOOD, "prompt": ["p", None]}, ["row 1 (prompt_id=b)", "prompt is empty"]),
        ({**GOOD, "messages": MESSAGES}, ["either a column 'prompt' or a column 'messages'"]),
        ({"prompt_id": ["a", "b"]}, ["either a column 'prompt' or a column 'messages'"]),
        ({"prompt": ["p"]}, ["'prompt_id' is missing"]),
        ({**GOOD, "completions": ["", ""]}, ["'completions'", "prepare.columns"]),
        ({**GOOD, "generation_prompt": ["", ""]}, ["'generation_prompt'", "prepare.columns"]),
        ({**GOOD, "domain": [1, 2]}, ["'domain' has type int64, must be string", "prepare.columns"]),
        ({**GOOD, "domain": ["a b", "a_b"]}, ["domains 'a b' and 'a_b' would share the metric 'a_b'"]),
        ({**GOOD, "domain": ["a", "!?"]}, ["'domain': '!?' makes no name for a metric"]),
        (
            {"prompt_id": [f"{n}" for n in range(101)], "prompt": ["p"] * 101, "domain": [f"{n}" for n in range(101)]},
            ["'domain' has 101 values, at most 100"],
        ),
        ({"prompt_id": ["a", "b"], "messages": ["p", "q"]}, ["'messages' has type string"]),
        ({"prompt_id": ["a", "b"], "messages": [*MESSAGES[:1], []]}, ["row 1 (prompt_id=b)", "prompt is empty"]),
        ({"prompt_id": pa.array([], pa.string()), "prompt": pa.array([], pa.string())}, ["no prompt"]),
    ],
)
def test_the_laws_of_the_table_hold_when_reading_and_writing(columns: dict[str, Any], words: list[str]) -> None:
    table = pa.table(columns)
    with pytest.raises(UserError) as caught:
        write_prompts(Path("p.parquet"), table, {})
    assert [word for word in ["p.parquet", *words] if word not in caught.value.message] == [], caught.value.message
    assert not Path("p.parquet").exists()
    pq.write_table(table.replace_schema_metadata({b"gift": b'{"schema_version": 1}'}), "p.parquet")
    with pytest.raises(UserError):
        read_prompts(Path("p.parquet"))


PATHS = ["data/prompts/train.parquet", "data/prompts/eval.parquet", "data/prompts/prepare.json"]


def write_params(**prepare: Any) -> None:
    import ruamel.yaml

    content = ruamel.yaml.YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] = prepare
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")


def test_the_stage_writes_the_same_bytes_again_and_never_overwrites() -> None:
    write_params(source=jsonl(ROWS), columns={"prompt": "question"}, num_eval=10)
    result = CliRunner().invoke(main, PATHS)
    assert result.exit_code == 0, result.output
    assert (
        result.stdout == "prepare: train read 60, train split off 10, train written 50, eval read 10, eval written 10\n"
    )
    assert result.stderr.endswith("is not in sources/: when it changes, run `dvc repro -f -s prepare`\n")
    first = [Path(path).read_bytes() for path in PATHS]
    refused = CliRunner().invoke(main, PATHS)
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "train.parquet: exists already" in refused.output
    for path in PATHS:
        Path(path).unlink()
    jsonl(ROWS[::-1])
    assert CliRunner().invoke(main, PATHS).exit_code == 0
    assert [Path(path).read_bytes() for path in PATHS] == first
    table, metadata = read_prompts(Path(PATHS[0]))
    assert table.column_names == ["prompt_id", "prompt", "answer", "level"]
    assert (metadata["artifact"], metadata["split"], metadata["settings"]["num_eval"]) == ("prompts", "train", 10)


def test_a_refused_source_leaves_nothing() -> None:
    write_params(source=jsonl([*ROWS, {"question": ""}]), columns={"prompt": "question"}, num_eval=10)
    result = CliRunner().invoke(main, PATHS)
    assert (result.exit_code, result.output) == (
        1,
        "error: data.jsonl:61: the prompt is empty; mend or remove the row, or leave it out by filters.length\n",
    )
    assert not list(Path("data").rglob("*.*"))


def test_hub_splits_are_read_by_name_and_a_wrong_id_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = {"train": ROWS[:40], "test": ROWS[30:]}

    def load_dataset(dataset_id: str, config: str | None, split: str) -> datasets.Dataset:
        if (dataset_id, config) != ("openai/gsm8k", "main"):
            raise FileNotFoundError(f"no {dataset_id}\nlong story")
        return datasets.Dataset.from_list(splits[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("gift.prompts.files._hub_is_reachable", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    choice = {"hub_config": "main", "eval_split": "test", "num_eval": 30}
    made = prepare_prompts(settings("hub:openai/gsm8k", **choice), seed=0)
    assert {row["prompt"] for row in made.eval} == {row["question"] for row in splits["test"]}
    assert (len(made.train), made.ledger["num_train_in_eval"]) == (30, 10)
    message = refusal("hub:openai/gsm9k", **choice)
    assert message.startswith("params.yaml: prepare.source: 'hub:openai/gsm9k': split 'train' cannot be loaded")
    assert "FileNotFoundError: no openai/gsm9k; check the id, the configuration and the splits" in message
    assert "\n" not in message


def test_a_hub_source_without_a_network_is_one_line_and_quick(folder: Path) -> None:
    write_params(source="hub:openai/gsm8k", hub_config="main", columns={"prompt": "question"})
    changes = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "stages.prepare", *PATHS], capture_output=True, text=True, env={**os.environ, **changes}
    )
    assert time.monotonic() - start < 20
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "error: params.yaml: prepare.source: 'hub:openai/gsm8k': split 'train' cannot be loaded"
    )
    assert result.stderr.count("\n") == 1
    assert "HF_HOME" in result.stderr
    assert ".jsonl" in result.stderr
