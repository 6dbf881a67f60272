"""A policy folder: its lineage, also as older versions wrote it, and every reason not to open or train a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from gift.policy.folder import PolicyFiles, policy_digest, read_lineage, write_lineage
from gift.policy.open import open_policy
from gift.policy.refusals import (
    adapter_dtype_refusal,
    config_refusals,
    dropout_refusal,
    file_refusals,
    linear_modules,
    module_names,
    target_refusals,
    text_config,
)
from gift.project.errors import UserError

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_lineage_of_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    own = policy_digest(tmp_path)
    old = {"schema_version": 1, "digest": own, "initial": "b" * 64, "parent": "p" * 64, "round": 3}
    (tmp_path / "gift.json").write_text(json.dumps(old))
    lineage = read_lineage(tmp_path)
    assert (lineage.base, lineage.parent, lineage.round) == ("b" * 64, "p" * 64, 3)
    new = write_lineage(tmp_path)
    assert (new.digest, new.base, new.schema_version) == (own, own, 2)
    assert read_lineage(tmp_path) == new
    (tmp_path / "gift.json").write_text(json.dumps({**old, "schema_version": 3}))
    with pytest.raises(UserError, match=r"gift.json: is damaged"):
        read_lineage(tmp_path)


def test_every_file_that_is_missing_is_told(tmp_path: Path) -> None:
    missing = file_refusals(tmp_path)
    assert [reason.split(" (")[0].split(";")[0] for reason in missing] == [
        "no model",
        "no *.safetensors weights",
        "no tokenizer beside the model",
    ]
    (tmp_path / "pytorch_model.bin").touch()
    assert "pickles only" in file_refusals(tmp_path)[1]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert file_refusals(tmp_path) == []


def test_every_reason_in_a_config_is_told_and_the_text_part_counts() -> None:
    config = {
        "architectures": ["BertForMaskedLM"],
        "final_logit_softcapping": 30.0,
        "logit_scale": 1.0,
        "logits_scaling": None,
        "quantization_config": {"bits": 4},
    }
    words = config_refusals(config)
    assert len(words) == 3
    for part, reason in zip(("BertForMaskedLM", "final_logit_softcapping=30.0", "quantized"), words, strict=True):
        assert part in reason
    part = {"final_logit_softcapping": None, "logits_scaling": 8.0, "architectures": None}
    both = text_config({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": part})
    assert ["logits_scaling=8.0" in reason for reason in config_refusals(both)] == [True]
    assert config_refusals({"architectures": ["GPT2LMHeadModel"]}) == []
    assert dropout_refusal({"attention_dropout": 0.0, "resid_pdrop": 0.1, "dropout_rng": True}).startswith(
        "its config has resid_pdrop=0.1"
    )
    assert dropout_refusal({"attention_dropout": 0.0}) is None


def test_a_model_that_changes_its_logits_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    """Also where config.json leaves it to transformers' default."""
    config = Gemma2Config(vocab_size=tiny.VOCABULARY, num_key_value_heads=1, head_dim=16, **SIZE)
    tiny.save(tmp_path, Gemma2ForCausalLM, config, tiny.byte_tokenizer())
    (tmp_path / "model.safetensors").write_text("no weights")
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    assert told.pop("final_logit_softcapping") == 30.0
    path.write_text(json.dumps(told))
    with pytest.raises(
        UserError, match=r"its config has final_logit_softcapping=30.0: models that change their logits"
    ):
        open_policy(PolicyFiles(tmp_path), "float32")


def test_names_in_the_weights_tell_the_same_targets_as_the_modules() -> None:
    config = Gemma2Config(vocab_size=60, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False, **SIZE)
    model = Gemma2ForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    head = model.get_output_embeddings()
    linear = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert linear_modules(shapes) == linear
    named = dict(model.named_modules())
    for targets in (["q_proj", "down_proj"], ["lm_head"], ["self_attn", "query"], ["norm", "embed_tokens"]):
        by_name = target_refusals(targets, module_names(shapes), linear_modules(shapes))
        assert by_name == target_refusals(targets, named, linear)
        assert len(by_name) == (0 if targets[0] == "q_proj" else len(targets))


def test_only_vllm_on_a_gpu_wants_adapters_in_bfloat16() -> None:
    asked = [
        (engine, dtype, gpu)
        for engine in ("vllm", "transformers")
        for dtype in ("float32", "bfloat16")
        for gpu in (0, 1)
    ]
    assert [each for each in asked if adapter_dtype_refusal(each[0], each[1], bool(each[2]))] == [
        ("vllm", "float32", 1)
    ]
