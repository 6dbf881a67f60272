"""Every preset, with rows in the shape of its data set, becomes the prompts and columns that its rewards read."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gift.compare.presets import read_preset
from gift.doctor.whole import Params, read_params
from gift.methods.names import MATCH, SHAPE
from gift.methods.sample.names import SAMPLE
from gift.project.rounds import lay_over
from gift.project.sections import check
from gift.project.yaml import read_yaml
from gift.prompts.settings import Prepare
from gift.prompts.sources import Prompts, prepare_prompts
from gift.tables.prompts import prompts_table, write_prompts

PRESETS = Path(__file__).parents[1] / "presets"
Make = Callable[[int], dict[str, Any]]
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def gsm8k(number: int) -> dict[str, Any]:
    return {
        "question": f"Tom has {number} apples and eats {number % 7}. Left?",
        "answer": f"{number}-... \n#### {number}",
    }


def math(number: int) -> dict[str, Any]:
    return {
        "problem": f"Find $x$ with $x + {number} = {2 * number}$.",
        "solution": f"So \\boxed{{{number}}}.",
        "answer": str(number),
        "subject": ("Algebra", "Number Theory")[number % 2],
        "level": number % 5 + 1,
        "unique_id": f"test/algebra/{number}.json",
    }


def dapo(number: int) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO.format(f"What is ${number}^2$?"), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(number**2), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"id-{number}"},
    }


def aime(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "problem": f"Let $a = {number}$. Find $a + 1$.",
        "solution": "...",
        "answer": f"{number + 1:03d}",
        "url": "https://example.org",
        "year": "2024",
    }


def mbpp(number: int) -> dict[str, Any]:
    return {
        "source_file": "some.ipynb",
        "task_id": number,
        "prompt": f"Write a function to add {number}.",
        "code": f"def add(x):\n    return x + {number}",
        "test_imports": ["import math"] if number % 2 else [],
        "test_list": [f"assert add({each}) == {each + number}" for each in range(3)],
    }


def ultrafeedback(number: int) -> dict[str, Any]:
    ask = {"content": f"Tell me about the number {number}", "role": "user"}
    return {
        "prompt": ask["content"] if number else "Hi",
        "prompt_id": f"{number % 20:064x}",  # of rows that repeat a prompt
        "chosen": [ask, {"content": "yes", "role": "assistant"}],
        "rejected": [ask, {"content": "no", "role": "assistant"}],
        "messages": [ask, {"content": "yes", "role": "assistant"}],
        "score_chosen": 8.0 + number,
        "score_rejected": 2.0,
    }


HUB: dict[str, Make] = {
    "hub:openai/gsm8k": gsm8k,
    "hub:nlile/hendrycks-MATH-benchmark": math,
    "hub:BytedTsinghua-SIA/DAPO-Math-17k": dapo,
    "hub:HuggingFaceH4/aime_2024": aime,
    "hub:google-research-datasets/mbpp": mbpp,
    "hub:HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
}


def written(rows: list[dict[str, Any]], folder: Path, name: str) -> str:
    path = folder / f"{name}.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def on_disk(settings: Prepare, folder: Path) -> Prepare:
    """The same settings on local files of 50 rows for train and 30 for eval, every fifth row of train twice."""
    content = settings.model_dump(mode="json", exclude_unset=True)

    def replaced(source: dict[str, Any], name: str, first: int, num: int) -> dict[str, Any]:
        make = HUB[source["source"]]
        rows = [make(number) for number in range(first, first + num)]
        path = written(rows + (rows[::5] if first == 0 else []), folder, name)
        return {**source, "source": path, "hub_config": None, "split": None} | ({"num": 5} if "num" in source else {})

    if settings.sources:
        content["sources"] = [replaced(each, f"train{n}", 0, 50) for n, each in enumerate(content["sources"])]
        content["eval_sources"] = [replaced(each, f"eval{n}", 50, 30) for n, each in enumerate(content["eval_sources"])]
    else:
        local = replaced({"source": settings.source}, "train", 0, 50)["source"]
        own_eval = replaced({"source": settings.source}, "eval", 50, 30)["source"]
        content |= {"source": local, "eval_source": own_eval, "hub_config": None, "eval_split": None}
    return Prepare.model_validate({**content, "num_eval": 20})


def prepared(name: str, folder: Path) -> tuple[Params, Prompts]:
    params = read_params(PRESETS / f"{name}.yaml")
    made = prepare_prompts(on_disk(params.prepare, folder), params.seed)
    for split, rows in (("train", made.train), ("eval", made.eval)):
        write_prompts(folder / f"{split}.parquet", prompts_table(rows, folder / f"{split}.parquet"), {})
        assert all(len(row["messages"]) == 1 for row in rows)
    return params, made


def content(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


PARAMS = sorted(path.stem for path in PRESETS.glob("*.yaml") if not path.stem.startswith("launch"))


@pytest.mark.parametrize("name", PARAMS)
def test_a_preset_makes_prompts_and_columns(name: str, tmp_path: Path) -> None:
    params, made = prepared(name, tmp_path)
    assert made.ledger["num_train_duplicates"] == 10 * max(1, len(params.prepare.sources))
    assert len(made.train) >= 45
    assert (len(made.eval), made.ledger["num_train_in_eval"]) == (20, 0)
    by = {"gsm8k": _gsm8k, "math-7b": _math, "dapo-32b": _dapo, "mbpp-7b": _mbpp, "ultrafeedback-7b": _ultrafeedback}
    by[name](made)


def _gsm8k(made: Prompts) -> None:
    for row in made.train:
        assert content(row).startswith(row["question"] + "\n\nThink step by step.")
        assert row["answer"].split("#### ")[1] in row["question"]


def _math(made: Prompts) -> None:
    assert {row["domain"] for row in made.train} == {row["domain"] for row in made.eval} == {"math", "gsm8k"}
    for row in made.train + made.eval:
        assert content(row) == row["problem"] + (
            "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
        )
        assert "solution" not in row
        assert row["answer"].split("#### ")[-1] in row["problem"]
    assert {row["level"] for row in made.train if row["domain"] == "math"} == {1, 2, 3, 4, 5}


def _dapo(made: Prompts) -> None:
    for row in made.train:
        root = content(row).split("What is $")[1].split("^")[0]
        assert row["answer"] == str(int(root) ** 2)
        assert row.keys() == {"answer", "messages", "prompt_id"}
    # The eval prompts are asked in the words of the training prompts.
    for row in made.eval:
        assert content(row) == DAPO.format(row["problem"])
        assert int(row["answer"]) == int(row["problem"].split("= ")[1].split("$")[0]) + 1


def _mbpp(made: Prompts) -> None:
    for row in made.train:
        assert content(row).startswith(f"{row['task']}\n\nYour code should pass this test:\n{row['test_list'][0]}\n")
        assert row["test_list"][1] not in content(row)
        assert row.keys() == {"task", "test_imports", "test_list", "messages", "prompt_id"}


def _ultrafeedback(made: Prompts) -> None:
    assert made.ledger["num_train_filtered_length_prompt"] == 1
    for row in made.train:
        assert row.keys() == {"messages", "prompt_id"}
        assert content(row).startswith("Tell me about the number ")


@pytest.mark.parametrize("name", PARAMS)
def test_a_preset_fits_in_its_own_context_and_steps(name: str) -> None:
    """Room for prompts beside the completion, whole optimizer steps, and what the comments say of the method."""
    params = read_params(PRESETS / f"{name}.yaml")
    for section in (params.generate, params.evaluate):
        assert section.max_model_len is not None
        assert section.max_model_len - section.max_tokens >= 512
        assert section.stop_tokens == params.generate.stop_tokens
    assert params.generate.prompts_per_round % params.update.groups_per_step == 0
    assert params.generate.prompts_per_round // params.update.groups_per_step == 4
    match = params.update.match
    assert (match.name, match.settings.anchor, match.settings.stats, match.settings.beta) == (
        "gift",
        "old",
        "detached",
        1.0,
    )
    assert (params.update.epochs, params.update.max_grad_norm) == (1, 1.0)


METHODS = sorted((PRESETS / "methods").glob("*.yaml"))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_can_be_laid_over_any_params(path: Path) -> None:
    """It says whose settings they are, changes the keys of a method alone, and names each choice."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert re.match(r"# .*(arXiv|verl)", first)
    beside = re.search(r"reference.token_weights, such as (.*\}), for it", first)
    content = read_yaml(path)
    assert content == read_preset(path)
    for name in PARAMS:
        whole = read_yaml(PRESETS / f"{name}.yaml")
        if beside:
            whole["reference"] |= {"token_weights": YAML(typ="safe").load(beside[1])}
        if "generate.group_size must be more" in first:
            whole["generate"]["group_size"] = 2 * content["update"]["select"][0]["pods"]["keep"]
        if "needs two rewards" in first:
            whole["score"]["rewards"]["second"] = {"function": "rewards/example.py:brevity"}
        params = check(Params, whole | {key: lay_over(whole[key], own) for key, own in content.items()}, path.name)
        update, given, sample = params.update, content["update"], content.get("generate", {}).get("sample", {})
        chosen = params.generate.sample
        assert ([chosen.name] if chosen else []) == [*sample]
        assert [{update.shape.name}, {update.match.name}] == [set(given["shape"]), set(given["match"])]
        assert [each.name for each in update.select] == [name for each in given.get("select", []) for name in each]


def test_every_match_and_every_way_to_sample_has_a_preset() -> None:
    sampled = [read_yaml(path).get("generate", {}).get("sample", {}) for path in METHODS]
    assert {name for each in sampled for name in each} == SAMPLE.keys()
    assert {name for path in METHODS for name in read_yaml(path)["update"]["match"]} == MATCH.keys()


def test_every_shape_has_a_preset() -> None:
    named = {name for path in METHODS for name in read_yaml(path)["update"]["shape"]}
    assert SHAPE.keys() == named
