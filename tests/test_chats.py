"""Chats through the real stages: the template's opening and end tokens reach the rollouts, domains the accuracies."""

import json
from pathlib import Path
from typing import Any

import mini
import pyarrow.parquet as pq
import pytest
from test_templates import QWEN3, tokenizer_of

STAGES = ("prepare", "base", "generate_eval_base", "evaluate_base", "generate@r1")
OPENING = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
ROWS = [{"q": f"What is {n}+{n}?", "answer": str(2 * n), "kind": ("Easy sums", "hard")[n % 2]} for n in range(40)]
SAMPLING = {
    "engine": "transformers",
    "groups_per_part": 4,
    "max_tokens": 12,
    "max_model_len": 256,
    "stop_tokens": ["<|im_end|>"],
}


def save_model(folder: Path) -> Any:
    """An untrained model whose end token is <eos>, with a template whose turns end with <|im_end|>."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer_of(QWEN3)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=256, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    folder = mini.make_project(tmp_path_factory.mktemp("chats"))
    (folder / "sources/sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    tokenizer = save_model(folder / "tiny")
    changes = {
        "prepare": {
            "source": "sources/sums.jsonl",
            "columns": {"domain": "kind"},
            "prompt_template": "{q}",
            "chat": True,
            "chat_template_kwargs": {"enable_thinking": False},
            "num_train": 20,
            "num_eval": 20,
        },
        "base": {"model": "tiny"},
        "generate": {**SAMPLING, "prompts_per_round": 8},
        "score": {"rewards": {"short": {"function": "rewards/example.py:brevity", "settings": {"max_tokens": 12}}}},
        "evaluate": {**SAMPLING, "correct": None},
    }
    mini.write_params(folder, changes)
    return folder, mini.run_stages(folder, STAGES), tokenizer


def rollouts(folder: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    table = pq.read_table(folder / "data/rounds" / name, partitioning=None)
    return table.to_pylist(), json.loads(table.schema.metadata[b"gift"])


@pytest.mark.parametrize("name", ["r1/rollouts", "base/answers"])
def test_the_rollouts_say_what_stands_before_them(project: tuple[Path, str, Any], name: str) -> None:
    folder, _, tokenizer = project
    rows, metadata = rollouts(folder, name)
    assert metadata["generation_prompt"] == OPENING
    for row in rows:
        assert tokenizer.decode(row["prompt_ids"]).endswith(f"<|im_end|>\n{OPENING}")


def test_a_completion_ends_at_the_first_of_the_end_tokens(project: tuple[Path, str, Any]) -> None:
    folder, said, tokenizer = project
    ends = {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    last = set()
    for row in rollouts(folder, "r1/rollouts")[0] + rollouts(folder, "base/answers")[0]:
        *before, end = row["completion_ids"]
        assert not ends & set(before)
        assert (row["finish_reason"] == "stop") == (end in ends)
        last.add(end)
    assert len(ends & last) == 2
    assert "stop_tokens" not in said


def test_a_turn_that_ends_nothing_is_said_once(project: tuple[Path, str, Any], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(project[0], tmp_path / "project"))
    mini.remove_outputs(folder, "generate@r1")
    mini.write_params(folder, {"generate": {"stop_tokens": []}})
    said = mini.run_stages(folder, ["generate@r1"])
    assert said.count("its chat template ends an answer with <|im_end|>, which ends no completion") == 1


def test_domains_have_numbers_of_their_own(project: tuple[Path, str, Any]) -> None:
    folder, *_ = project
    numbers = json.loads((folder / "data/rounds/base/metrics/evaluate.json").read_text(encoding="utf-8"))
    domains = ["Easy_sums", "hard"]
    assert numbers["eval/num_prompts"] == sum(numbers[f"eval/{domain}/num_prompts"] for domain in domains) == 20
    for name in ("reward", "reward_greedy"):
        shares = [numbers[f"eval/{domain}/num_prompts"] / 20 * numbers[f"eval/{domain}/{name}"] for domain in domains]
        assert numbers[f"eval/{name}"] == pytest.approx(sum(shares))
    assert not [name for name in numbers if "accuracy" in name or "pass@" in name]
