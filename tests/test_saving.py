"""What is saved is what was trained: a policy is opened again before it is published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.policy.folder import Lineage, PolicyFiles
from gift.policy.open import open_policy
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.training.saving.policy import Probe, Written, check_saved, digest_of
from gift.training.saving.state import parents_state

PROMPT, COMPLETION = Ragged.of([[5, 6, 7]], np.int32), Ragged.of([np.arange(100) % 50], np.int32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> PolicyFiles:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=tiny.VOCABULARY, num_key_value_heads=1, head_dim=16, **size)
    folder = tmp_path_factory.mktemp("saved")
    return PolicyFiles(tiny.save(folder, Qwen3ForCausalLM, config, tiny.byte_tokenizer()))


def check(files: PolicyFiles, model: Any, dtype: str, trained: Tensor) -> None:
    digests = {name: digest_of(parameter) for name, parameter in model.named_parameters()}
    check_saved(Written(files, digests), dtype, Probe(0.9, PROMPT, COMPLETION, trained))


def logprobs(model: Any) -> Tensor:
    return torch.from_numpy(completion_logprobs(TokenLogprobs(model, 0.9), PROMPT, COMPLETION, [[0]]).values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_that_is_not_the_trained_one_is_refused(saved: PolicyFiles, dtype: str) -> None:
    model = open_policy(saved, dtype)
    trained = logprobs(model)
    check(saved, model, dtype, trained)
    with pytest.raises(UserError, match=r"by .* nats a token on a probe .* nothing was published"):
        check(saved, model, dtype, trained * 1.5)
    with pytest.raises(UserError, match="by nan"):
        check(saved, model, dtype, trained * torch.nan)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] *= 1.01  # which no log-prob tells
    with pytest.raises(UserError, match=r"trained one in model.layers.0.mlp.up_proj.weight; nothing"):
        check(saved, model, dtype, trained)


def test_one_token_that_bfloat16_rounds_otherwise_on_another_device_is_no_reason(saved: PolicyFiles) -> None:
    """The trainer's log-probs may come from a GPU, these from a CPU: a hundred tokens' work is not refused for one."""
    model = open_policy(saved, "bfloat16")
    trained = logprobs(model)
    trained[50] += 0.5
    check(saved, model, "bfloat16", trained)


def test_the_state_of_the_base_is_that_of_no_other_policy(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert parents_state(tmp_path, Lineage(digest="d", base="d"), set()) is None
    with pytest.raises(UserError, match="belongs to the base policy, the round starts from one of round 2; `dvc "):
        parents_state(tmp_path, Lineage(digest="d", base="b", round=2), set())
