"""GSM8K end to end: real problems through the real stages, with a tiny policy; and the preset for the real thing."""

import json
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gift.doctor.whole import read_params
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.policy.folder import PolicyFiles, policy_digest
from gift.policy.open import open_policy
from gift.project.ragged import Ragged
from gift.prompts.sources import prepare_prompts
from gift.rewards.answers import gsm8k_answer
from gift.rewards.form import text_format

DATA = mini.ROOT.parent / "shared" / "data" / "gsm8k"
PRESET = mini.ROOT / "presets" / "gsm8k.yaml"
STAGES = ("prepare", "base", "generate@r1", "score@r1", "reference@r1", "update@r1")
TEMPLATE = "Question: {question}\nAnswer:"
PARAMS: dict[str, Any] = {
    "prepare": {"source": "gsm8k.jsonl", "prompt_template": TEMPLATE, "num_train": None, "num_eval": 16},
    "base": {"model": "tiny"},
    "generate": {"prompts_per_round": 16, "group_size": 4, "max_tokens": 16},
    # Random letters are never the answer, so a reward of the user's own is what differs inside a group.
    "score": {
        "rewards": {
            "answer": {"function": "gsm8k_answer"},
            "digits": {"function": "rewards/digits.py:share_of_digits", "weight": 2.0, "settings": {"minus": 0.25}},
        }
    },
    "update": {"groups_per_step": 4, "lr": 3e-3, "warmup_steps": 0},
}
DIGITS = '''
"""Share of digits."""


def share_of_digits(prompts, completions, completion_ids, question, minus, **columns):
    assert question[0] in prompts[0]
    return [sum(c.isdigit() for c in text) / max(1, len(text)) - minus for text in completions]
'''

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no GSM8K files in {DATA}")


def problems(num: int) -> list[dict[str, str]]:
    with (DATA / "train.jsonl").open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(num)]


def save_tiny(folder: Path) -> None:
    """An untrained model of one token a printable character and a context long enough for GSM8K."""
    characters = "\n" + "".join(map(chr, range(32, 127)))
    vocabulary = {token: number for number, token in enumerate(["<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        dtype="float32",
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mini.make_project(tmp_path_factory.mktemp("gsm8k"))
    lines = [json.dumps(row) + "\n" for row in problems(64)]
    (folder / "gsm8k.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "rewards" / "digits.py").write_text(DIGITS, encoding="utf-8")
    save_tiny(folder / "tiny")
    mini.write_params(folder, PARAMS)
    mini.run_stages(folder, STAGES)
    return folder


def table(project: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(project / "data" / "rounds" / "r1" / name, partitioning=None).to_pylist()


def numbers(project: Path, name: str) -> dict[str, Any]:
    return json.loads((project / "data/rounds/r1/metrics" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_problems_become_prompts_with_all_their_columns(project: Path) -> None:
    ledger = json.loads((project / "data/prompts/prepare.json").read_text(encoding="utf-8"))
    assert (ledger["num_train_read"], ledger["num_train_split_off"], ledger["num_train_written"]) == (64, 16, 48)
    tables = [pq.read_table(project / "data/prompts" / f"{split}.parquet") for split in ("train", "eval")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert sorted(row["question"] for row in rows) == sorted(row["question"] for row in problems(64))
    assert all(row["prompt"] == TEMPLATE.format(question=row["question"]) and "####" in row["answer"] for row in rows)


def test_the_ledgers_close(project: Path) -> None:
    rollouts, scores = table(project, "rollouts"), table(project, "scores")
    sampled, scored, trained = (numbers(project, name) for name in ("generate", "score", "update"))
    assert (sampled["num_prompts"], sampled["num_groups"], sampled["num_completions"]) == (48, 16, 64)
    assert sampled["num_tokens"] == sum(len(row["completion_ids"]) for row in rollouts)
    assert sampled["num_truncated"] == sum(row["finish_reason"] == "length" for row in rollouts)
    assert scored["num_scored"] == scored["num_rollouts"] == 64
    assert scored["num_failed"] == scored["num_abstained"] == 0
    dropped = sum(trained[f"num_groups_{why}"] for why in ("unscored", "not_selected", "zero_targets"))
    assert dropped + trained["num_groups_selected"] == trained["num_groups"] == 16
    assert trained["num_groups_trained"] == trained["num_groups_selected"] > 8
    rewards: dict[str, set[float]] = {}
    tokens: dict[str, int] = {}
    for rollout, score in zip(rollouts, scores, strict=True):
        rewards.setdefault(score["prompt_id"], set()).add(score["reward"])
        tokens[score["prompt_id"]] = tokens.get(score["prompt_id"], 0) + len(rollout["completion_ids"])
    assert trained["num_groups_zero_targets"] == sum(len(values) == 1 for values in rewards.values())
    assert trained["num_tokens_trained"] == sum(tokens[key] for key, values in rewards.items() if len(values) > 1)


def test_rewards_are_those_of_the_text(project: Path) -> None:
    for rollout, score in zip(table(project, "rollouts"), table(project, "scores"), strict=True):
        text = rollout["completion"]
        share = sum(c.isdigit() for c in text) / max(1, len(text)) - 0.25
        assert (score["answer"], score["answer_status"], score["digits_status"]) == (0.0, "ok", "ok")
        assert score["digits"] == pytest.approx(share)
        assert score["reward"] == pytest.approx(2 * share)


def test_the_update_moves_the_policy_towards_the_reward(project: Path) -> None:
    """Completions above their group's mean reward became likelier against those below it, in nearly every group."""
    folder = project / "data" / "rounds" / "r1"
    base = json.loads((project / "data/rounds/base/policy/gift.json").read_text(encoding="utf-8"))
    lineage = json.loads((folder / "policy/gift.json").read_text(encoding="utf-8"))
    update = numbers(project, "update")
    assert lineage["digest"] == policy_digest(folder / "policy") != base["digest"]
    assert (lineage["parent"], lineage["base"]) == (base["digest"], base["digest"])
    assert (lineage["round"], lineage["prompts_consumed"]) == (1, 16)
    assert lineage["optimizer_steps"] == update["num_steps"] == round(update["num_groups_selected"] / 4)
    assert lineage["completion_tokens"] == update["num_tokens_trained"]
    rollouts, reference = table(project, "rollouts"), table(project, "reference")
    names = ("prompt_ids", "completion_ids")
    prompts, completions = (Ragged.of([row[name] for row in rollouts], np.int32) for name in names)
    each = [[index] for index in range(len(rollouts))]
    old = completion_logprobs(
        TokenLogprobs(open_policy(PolicyFiles(project / "tiny"), "float32"), 1.0), prompts, completions, each
    )
    for row, expected in zip(reference, old, strict=True):
        assert row["ref_logprobs"] == row["old_logprobs"] == pytest.approx(expected.tolist(), abs=1e-5)
    new = completion_logprobs(
        TokenLogprobs(open_policy(PolicyFiles(folder / "policy"), "float32"), 1.0), prompts, completions, each
    )
    gain = torch.tensor([(after - before).sum() for after, before in zip(new, old, strict=True)]).view(-1, 4)
    rewards = torch.tensor([row["reward"] for row in table(project, "scores")]).view(-1, 4)
    product = ((rewards - rewards.mean(-1, keepdim=True)) * gain).sum(-1)
    spread = rewards.std(-1) > 1e-6
    assert (product[spread] > 0).float().mean() >= 0.9


def test_the_preset_asks_for_what_its_rewards_accept() -> None:
    """Every real solution, as a completion, has the right answer and the form; half of one has neither."""
    params = read_params(PRESET)
    local = {"source": str(DATA / "train.jsonl"), "eval_source": str(DATA / "test.jsonl")}
    hub = {"hub_config": None, "train_split": "train", "eval_split": None}
    made = prepare_prompts(params.prepare.model_copy(update={**local, **hub}), params.seed)
    assert (made.ledger["num_train_read"], len(made.eval)) == (7473, 1319)
    rewards = params.score.rewards
    assert (rewards["answer"].function, rewards["format"].function) == ("gsm8k_answer", "text_format")
    texts = [row["answer"] for row in made.eval]
    halves = [text[: text.index("####")] for text in texts]
    for said, right in ((texts, 1.0), (halves, 0.0)):
        assert set(gsm8k_answer([], said, [], answer=texts, **rewards["answer"].settings)) == {right}
        assert set(text_format([], said, [], **rewards["format"].settings)) == {right}
    for row in made.eval[:50]:
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert row["question"] in row["messages"][0]["content"]
        assert "####" in row["messages"][0]["content"]
        assert row["answer"].rpartition("#### ")[2] not in row["messages"][0]["content"].removeprefix(row["question"])
