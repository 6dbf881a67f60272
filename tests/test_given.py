"""Given answers beside what was sampled: their tokens, the law of their rows, who reads them, and real rounds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from test_rows import bind, joined, write_round
from test_templates import CHATML, GEMMA, LLAMA2, LLAMA3, QWEN3, R1, tokenizer_of

from gift.compare.chain import moved
from gift.embedded.task import problems
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.methods.choosing import choose
from gift.methods.making import groups_of
from gift.policy.folder import PolicyFiles
from gift.policy.open import open_policy
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.work import tree_digest
from gift.sampling.encoding import EncodedPrompts, encode_prompts
from gift.sampling.given import encode_given
from gift.sampling.settings import Generate
from gift.scoring.metrics import score_metrics
from gift.scoring.settings import Reward, Score
from gift.tables.parquet import part_name, read_file, write_file
from gift.tables.parts import read_part
from gift.tables.prompts import given_texts
from gift.tables.rollouts import NO_SEED, ROLLOUTS, check_rollouts, without_given
from gift.tables.scores import scores_schema
from gift.training.settings import Update

POLICY, PROMPTS = Path("policy"), Path("train.parquet")
ASKED = [{"role": "user", "content": "What is 2+2?"}]


def settings(*given: str, max_tokens: int = 40) -> Generate:
    fields = {"max_tokens": max_tokens, "prompts_per_round": 1, "group_size": 2}
    return Generate.model_validate({**fields, "given": list(given)})


def update(**keys: Any) -> Update:
    return Update.model_validate({"groups_per_step": 1, "lr": 1.0, "dtype": "float32", **keys})


def encoded(
    columns: dict[str, Any], template: str | None = None, ends: tuple[str, ...] = ("<eos>",), **keys: Any
) -> tuple[Any, EncodedPrompts, dict[str, list[list[int]]]]:
    """A tokenizer, prompts in its tokens, and their given answers: all other columns."""
    tokenizer, variables = tokenizer_of(template), keys.pop("variables", {})
    size = len(next(iter(columns.values())))
    table = pa.table({"prompt_id": [f"p{row}" for row in range(size)], **columns})
    ids, opening = encode_prompts(tokenizer, table, variables, POLICY)
    asked = EncodedPrompts(ids, opening, sorted(tokenizer.convert_tokens_to_ids(list(ends))), 512)
    given = settings(*[name for name in columns if name not in ("prompt", "messages")], **keys)
    made = encode_given(tokenizer, table, asked, variables, given, POLICY, PROMPTS)
    return tokenizer, asked, {key: [each.tolist() for each in answers] for key, answers in made.items()}


def refusal(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        encoded(*arguments, **keys)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_given_answer_to_a_text_is_its_tokens_behind_those_of_the_prompt_and_the_end() -> None:
    columns = {"prompt": ["1+1=", "3-1="], "right": ["2", " 2 "], "wrong": ["3", "five"]}
    tokenizer, asked, given = encoded(columns)
    for row, key in enumerate(("p0", "p1")):
        for place, name in enumerate(("right", "wrong")):
            whole = tokenizer(columns["prompt"][row] + columns[name][row])["input_ids"]
            assert [*asked.prompt_ids[key].tolist(), *given[key][place]] == [*whole, tokenizer.eos_token_id]


def test_no_column_is_no_answer() -> None:
    assert encoded({"prompt": ["1+1="]})[2] == {"p0": []}


@pytest.mark.parametrize(
    ("template", "variables", "end", "said"),
    [
        (CHATML, {}, "<|im_end|>", "4"),
        (QWEN3, {"enable_thinking": False}, "<|im_end|>", "4"),  # the thought is in the opening already
        (LLAMA3, {}, "<|eot_id|>", "4"),
        (GEMMA, {}, "<end_of_turn>", "4"),
        (R1, {}, "<｜end▁of▁sentence｜>", "4"),  # the opening <think> is not in a finished turn
        (LLAMA2, {}, "<eos>", " 4"),  # the template's own space
        (
            CHATML.replace(
                "{{ m['content'] }}",
                "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
            ),
            {},
            "<|im_end|>",
            "<think>\n\n</think>\n\n4",
        ),
        (None, {}, "<eos>", "4"),
    ],
)
def test_a_given_answer_to_a_chat_is_what_the_template_puts_behind_the_opening(
    template: str | None, variables: dict[str, Any], end: str, said: str
) -> None:
    if template is None:  # it writes no special token behind an answer
        template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    columns = {"messages": [ASKED], "answer": ["4"]}
    tokenizer, asked, given = encoded(columns, template, ("<eos>", end), variables=variables)
    assert given["p0"] == [[*tokenizer(said, add_special_tokens=False)["input_ids"], *ids_of(tokenizer, end)]]
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, **variables)
    whole = tokenizer(f"{text}{said}{end}", add_special_tokens=False)["input_ids"]
    assert [*asked.prompt_ids["p0"].tolist(), *given["p0"][0]] == whole


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    return list(tokenizer.convert_tokens_to_ids(list(tokens)))


def test_of_messages_the_last_of_the_assistant_is_the_answer() -> None:
    kind = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
    chosen = pa.array([[*ASKED, {"role": "assistant", "content": "4"}]], kind)
    assert (
        encoded({"messages": [ASKED], "chosen": chosen}, CHATML, ("<|im_end|>",))[2]
        == (encoded({"messages": [ASKED], "chosen": ["4"]}, CHATML, ("<|im_end|>",))[2])
    )
    with pytest.raises(UserError, match="1 of 1 prompts have no answer there"):
        given_texts(pa.table({"prompt_id": ["p0"], "chosen": pa.array([ASKED], kind)}), ["chosen"], PROMPTS)


def test_what_no_sampler_could_have_returned_is_refused_in_one_line() -> None:
    key = "params.yaml: generate.given: answer: "
    prompts = {"prompt": ["1+1=", "2+2="]}
    assert refusal({**prompts, "answer": ["2", "12345"]}, max_tokens=5).startswith(
        f"{key}1 answers are longer than generate.max_tokens = 5, the longest that of prompt_id=p1 with 6 (its end "
        "token included); raise generate.max_tokens, or leave such rows out"
    )
    assert encoded({**prompts, "answer": ["2", "1234"]}, max_tokens=5)
    assert refusal({**prompts, "answer": ["2", "4<eos>"]}).startswith(
        f"{key}the answer of prompt_id=p1 holds the end token <eos>, behind which no completion goes on"
    )
    assert refusal({**prompts, "answer": ["2", "4"]}, ends=()).endswith("no end token; set generate.stop_tokens")
    message = refusal({"messages": [ASKED], "answer": ["4"]}, CHATML)
    assert message.endswith("ends no completion; set generate.stop_tokens: ['<|im_end|>']")


def test_columns_that_do_not_serve_are_refused_in_one_line() -> None:
    table = pa.table(
        {"prompt_id": ["a", "b", "c"], "prompt": ["x"] * 3, "answer": ["1", None, " "], "level": [1, 2, 3]}
    )
    messages = {
        "anser": "anser: train.parquet has no such column; did you mean 'answer'?",
        "level": "level: the column has type int64, must be text, or messages .* prepare.as_text",
        "answer": r"answer: train.parquet: 2 of 3 prompts have no answer there, the first prompt_id=b; every group "
        r"needs one: leave such rows out, prepare.filters.length: \{answer: \[1, null\]\}",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=rf"^params.yaml: generate.given: {message}[^\n]*$"):
            given_texts(table, [name], PROMPTS)
    with pytest.raises(ValueError, match="names 'answer' twice"):
        settings("answer", "answer")


def rows(num_groups: int = 2, size: int = 2, num_given: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{group}",
            "sample": sample,
            "prompt_ids": [1, 2],
            "completion_ids": [3] * (sample + 1),
            "completion": "x",
            "rollout_logprobs": [-0.5] * (sample + 1) if sample < size else [],
            "finish_reason": "stop" if sample < size else "given",
            "seed": 7 if sample < size else NO_SEED,
        }
        for group in range(num_groups)
        for sample in range(size + num_given)
    ]


def test_rows_of_given_answers_are_lawful_and_leave_the_others() -> None:
    table = pa.Table.from_pylist(rows(num_given=2), ROLLOUTS)
    check_rollouts(table, Path("t"))
    assert without_given(table).to_pylist() == rows(num_given=0)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (5, {"rollout_logprobs": [-1.0] * 3}, "row 5 .*a given answer has rollout_logprobs, but no sampler drew it"),
        (5, {"seed": 0}, "row 5 .*seed must be -1 for a given answer, and for no other"),
        (4, {"seed": -1}, "row 4 .*seed must be -1 for a given answer, and for no other"),
        (4, {"rollout_logprobs": []}, "row 4 .*rollout_logprobs is not as long as the completion"),
        (5, rows(1, 3, 0)[2] | {"prompt_id": "p1"}, "row 2 .*given answers must stand behind what was sampled"),
        (1, rows(1, 0, 2)[1], "row 1 .*given answers must stand behind what was sampled, as many in every group"),
    ],
)
def test_rows_of_given_answers_that_are_not_lawful_are_refused(row: int, change: dict[str, Any], message: str) -> None:
    content = rows()
    content[row] |= change
    with pytest.raises(UserError, match=f"t: {message}"):
        check_rollouts(pa.Table.from_pylist(content, ROLLOUTS), Path("t"))
    with pytest.raises(UserError, match="given answers must stand behind what was sampled"):
        check_rollouts(pa.Table.from_pylist(rows(2, 0, 2), ROLLOUTS), Path("t"))


def with_given(folder: Path) -> None:
    """A round of tests/test_rows.py in which the last of each group was given."""
    write_round(folder)
    for path in sorted((folder / "rollouts").iterdir()):
        table, metadata = read_file(path)
        content = table.to_pylist()
        for row in content[3::4]:
            row |= {"finish_reason": "given", "seed": NO_SEED, "rollout_logprobs": []}
        write_file(path, pa.Table.from_pylist(content, ROLLOUTS), metadata)
        read_part(path, ROLLOUTS, check_rollouts)
    bind(folder)


def test_the_update_reads_who_was_sampled_and_no_log_prob_of_a_sampler_for_the_others(tmp_path: Path) -> None:
    write_round(tmp_path / "plain")
    with_given(tmp_path / "given")
    plain, groups = (joined(tmp_path / name, needs=["rollout_logprobs"]).groups for name in ("plain", "given"))
    assert groups.sampled.tolist() == [[True, True, True, False]] * 6
    assert plain.sampled.all()
    assert groups.rollout_logprobs is not None
    assert plain.rollout_logprobs is not None
    drawn = groups.to_tokens(groups.sampled)
    assert torch.equal(groups.rollout_logprobs[drawn], plain.rollout_logprobs[drawn])
    assert groups.rollout_logprobs[~drawn].isnan().all()
    assert torch.equal(groups.mask, plain.mask)


def test_a_shape_that_does_not_read_given_answers_leaves_them_out_with_a_count(tmp_path: Path) -> None:
    with_given(tmp_path)
    groups = joined(tmp_path, needs=["rollout_logprobs"]).groups
    masked = replace(groups, mask=groups.mask & groups.sampled, sampled=torch.ones_like(groups.sampled))
    select = [{"at_stake": {}}, {"off_policy": {"threshold": 0.1}}]
    for keys in ({}, {"kl_in_reward": 0.1, "match": {"clipped": {}}}, {"select": select}):
        chosen, expected = (choose(each, update(**keys)) for each in (groups, masked))
        assert torch.equal(chosen.groups.mask, expected.groups.mask)
        assert torch.equal(chosen.targets.completions, expected.targets.completions)
        assert chosen.indices == expected.indices
        ledger = chosen.ledger
        assert (ledger["num_completions"], ledger["num_given"]) == (18, 6)
        scored = int((groups.mask & ~groups.sampled).sum())
        assert 0 < ledger["num_given_not_used"] == scored == 6 - ledger["num_given_unscored"]
        assert ledger["num_given_selected"] == ledger["num_given_not_selected"] == 0
        same = [name for name in ledger if "given" not in name and not name.startswith("num_completions")]
        assert {name: ledger[name] for name in same} == {name: expected.ledger[name] for name in same}


def test_a_shape_that_reads_them_keeps_them_whatever_select_says() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False], [False] * 3 + [True]])
    sampled = torch.tensor([[True, True, True, False]] * 4)
    lengths = torch.ones(4, 4, dtype=torch.int64)
    flat = {"ref_logprobs": torch.full((16,), -1.0), "old_logprobs": torch.full((16,), -2.0)}
    groups = groups_of(rewards * mask, mask, lengths, 5, sampled=sampled, **flat)
    keys = {"match": {"grao": {}}, "shape": {"with_given": {}}}
    chosen = choose(groups, update(**keys, select=[{"at_stake": {}}, {"pods": {"keep": 2}}]))
    assert chosen.groups.mask.tolist() == [
        [True, True, False, True],
        [False] * 4,  # what was sampled is equal
        [True, True, False, False],
        [False] * 4,  # nothing sampled is left
    ]
    taken_off = choose(groups, update(**keys, kl_in_reward=0.5, select=[{"pods": {"keep": 2}}]))
    assert taken_off.groups.rewards[0].tolist() == [1.5, 0.5, 0.5, 1.0]  # no KL of what nobody sampled
    ledger = chosen.ledger
    parts = [ledger[f"num_given_{name}"] for name in ("unscored", "not_used", "not_selected", "selected")]
    assert parts == [1, 0, 2, 1]
    assert ledger["num_given"] == sum(parts)
    assert ledger["num_groups_unscored"] == 1


def test_the_numbers_of_a_scores_table_are_those_of_what_was_sampled() -> None:
    score = Score(rewards={"a": Reward(function="a")})
    values = [1.0, 0.0, 1.0, 0.5, 0.0, None]
    status = ["ok"] * 5 + ["error"]
    key = {"prompt_id": ["p", "p", "p", "q", "q", "q"], "sample": pa.array([0, 1, 2] * 2, pa.int32())}
    columns = [*key.values(), values, values, status]
    scores = pa.table(columns, schema=scores_schema(score.rewards))
    reasons = ["stop", "length", "given"] * 2
    table = pa.table({**key, "num_tokens": pa.array([4, 6, 50] * 2, pa.int32()), "finish_reason": reasons})
    drawn = pc.not_equal(table["finish_reason"], "given")
    plain = score_metrics(table.filter(drawn), scores.filter(drawn), score)
    own = {"num_given": 2, "num_given_scored": 1, "num_given_failed": 1, "num_given_abstained": 0, "given/reward": 1.0}
    assert score_metrics(table, scores, score) == {**plain, **own}
    assert plain["completions/max_length"] == 6


# Rounds of one base: without given answers, with one that GIFT leaves out, and with those that a loss learns from.
GRAO = {"match": {"grao": {}}, "shape": {"with_given": {}}, "correction": {}, "kl": {"coef": 0.01}, "lr": 1.0e-3}
HAL = {"match": {"f_hal": {}}, "shape": {"given_pairs": {}}, "zero_targets": "keep", "lr": 1.0e-3}
ROUNDS = {
    "plain": {},
    "left": {"generate": {"given": ["full"]}},
    "grao": {"generate": {"given": ["full"]}, "update": GRAO},
    "hal": {"generate": {"given": ["full", "wrong"]}, "update": HAL},
}
STAGES = ("generate", "score", "reference", "update")


def worked(row: dict[str, str]) -> dict[str, str]:
    """A problem with its answer in the form that the reward reads, and a wrong one."""
    return {**row, "full": f"#{row['answer']}", "wrong": f"#{int(row['answer']) + 1}"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mini.make_project(tmp_path_factory.mktemp("given"))
    content = [worked(row) for row in problems(60, 0, 4, "train")]
    lines = "".join(json.dumps(row) + "\n" for row in content)
    (folder / "sources/sums.jsonl").write_text(lines, encoding="utf-8")
    mini.write_params(folder, {"prepare": {"source": "sources/sums.jsonl", "num_train": 40, "num_eval": 10}})
    rounds = {name: {"from": "base", **own} for name, own in ROUNDS.items()}
    (folder / "rounds.yaml").write_text(json.dumps({"rounds": rounds}), encoding="utf-8")
    every = [f"{stage}@{name}" for name in ROUNDS for stage in STAGES]
    mini.run_stages(folder, ["code", "prepare", "base", *every])
    return folder


def numbers(project: Path, name: str, stage: str) -> dict[str, Any]:
    return dict(json.loads((project / f"data/rounds/{name}/metrics/{stage}.json").read_text(encoding="utf-8")))


def table(project: Path, name: str, of: str = "rollouts") -> pa.Table:
    parts = sorted((project / f"data/rounds/{name}/{of}").iterdir())
    assert [path.name for path in parts] == [part_name(index) for index in range(4)]
    return pa.concat_tables([read_file(path)[0].replace_schema_metadata() for path in parts])


@pytest.mark.slow
def test_given_answers_stand_behind_the_same_samples(project: Path) -> None:
    plain = table(project, "plain")
    known = {row["prompt_id"]: row for row in read_file(project / "data/prompts/train.parquet")[0].to_pylist()}
    for name, columns in (("left", ["full"]), ("hal", ["full", "wrong"])):
        found = table(project, name)
        assert without_given(found).equals(plain)
        given = found.filter(pc.equal(found["finish_reason"], "given")).to_pylist()
        assert len(given) == 16 * len(columns)
        for row in given:
            column = columns[row["sample"] - 4]
            assert row["completion"] == known[row["prompt_id"]][column]
            assert (row["rollout_logprobs"], row["seed"]) == ([], NO_SEED)
            assert len(row["completion_ids"]) == len(row["completion"]) + 1


@pytest.mark.slow
def test_numbers_are_of_what_was_sampled_and_given_answers_are_counted(project: Path) -> None:
    for stage in ("generate", "score", "reference"):
        plain, left = numbers(project, "plain", stage), numbers(project, "left", stage)
        assert {name: value for name, value in left.items() if "given" not in name} == pytest.approx(plain, rel=1e-5)
        assert left["num_given"] == 16
    assert "num_given" not in plain
    gaps = [moved(project / f"data/rounds/{name}") for name in ("plain", "left")]  # of a comparison of methods
    assert gaps[1] == pytest.approx(gaps[0], rel=1e-5, abs=1e-6)
    scored = numbers(project, "hal", "score")
    assert (scored["num_given"], scored["num_given_scored"], scored["num_rollouts"]) == (32, 32, 64)
    right = numbers(project, "grao", "score")["given/reward"]
    assert right > scored["given/reward"]


@pytest.mark.slow
def test_a_loss_that_does_not_read_them_trains_as_without_them(project: Path) -> None:
    plain, left = numbers(project, "plain", "update"), numbers(project, "left", "update")
    own = {"num_given": 16, "num_given_not_used": 16}
    own |= dict.fromkeys(("num_given_unscored", "num_given_not_selected", "num_given_selected"), 0)
    assert {name: left[name] for name in own} == own
    assert left == pytest.approx({**plain, **own}, rel=1e-3, abs=1e-5)
    policies = [project / f"data/rounds/{name}/policy" for name in ("plain", "left", "grao")]
    first, second, third = (open_policy(PolicyFiles(each), "float32", "cpu").state_dict() for each in policies)
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert gap < 1e-2 * max(float((first[name] - third[name]).abs().max()) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("grao", 16), ("hal", 32)])
def test_a_loss_that_reads_them_learns_from_them(project: Path, name: str, number: int) -> None:
    """GRAO makes the given answers likelier; f-HAL the right one against the wrong one."""
    trained = numbers(project, name, "update")
    assert trained["num_given"] == number
    assert trained["num_given_selected"] + trained["num_given_not_selected"] == number
    assert trained["num_given_selected"] > 0
    found = table(project, name)
    reference = table(project, name, "reference")
    prompts, completions = (Ragged.from_arrow(found[column]) for column in ("prompt_ids", "completion_ids"))
    model = TokenLogprobs(open_policy(PolicyFiles(project / f"data/rounds/{name}/policy"), "float32", "cpu"), 1.0)
    new = completion_logprobs(model, prompts, completions, [[row] for row in range(found.num_rows)])
    old = Ragged.from_arrow(reference["old_logprobs"])
    gain = np.array([float(new[row].sum() - old[row].sum()) for row in range(found.num_rows)])
    sample = found["sample"].to_numpy()
    gained = gain[sample == 4] - (gain[sample == 5] if name == "hal" else 0)
    assert gained.mean() > 0
    assert tree_digest(project / f"data/rounds/{name}/policy") != tree_digest(project / "data/rounds/left/policy")
