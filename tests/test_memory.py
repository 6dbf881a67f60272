"""The estimate of what a batch takes: autograd keeps as many bytes of a layer as the formula says."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3ForCausalLM

from gift.logprobs.checkpointing import checkpoint_selectively
from gift.logprobs.layouts import TokenBatch, token_batch
from gift.logprobs.tokens import TokenLogprobs
from gift.project.ragged import Ragged
from gift.training.memory import Checkpointing, Decoder

CHOICES: tuple[Checkpointing, ...] = (False, "selective", True)
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 160, "vocab_size": 500}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4),
    "qwen2, fewer keys": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3, norms of queries": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=24),
}


def policy(
    config: Any, layers: int, dtype: torch.dtype, lengths: tuple[int, int, int]
) -> tuple[TokenLogprobs, TokenBatch]:
    """A model of this many layers, and a batch for it."""
    from transformers import AutoModelForCausalLM

    config = type(config)(**config.to_dict() | {"num_hidden_layers": layers, "layer_types": None})
    model = TokenLogprobs(AutoModelForCausalLM.from_config(config, dtype=dtype), 1.0, "shared")
    rows, prompt, completion = lengths
    draw = np.random.default_rng(0).integers
    prompts = Ragged.of([draw(0, 500, prompt)] * rows, np.int32)
    completions = Ragged.of([draw(0, 500, completion) for _ in range(rows)], np.int32)
    return model, token_batch(prompts, completions, model.layout)


def kept(config: Any, layers: int, dtype: torch.dtype, lengths: tuple[int, int, int]) -> tuple[int, TokenLogprobs]:
    """Bytes of the storages that a forward keeps for its backward, those of the weights left out."""
    model, batch = policy(config, layers, dtype, lengths)
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(storage.nbytes() for storage in found.values()), model


@pytest.mark.parametrize("lengths", [(4, 30, 60), (1, 20, 100), (2, 100, 20)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_keeps_what_the_formula_says(name: str, dtype: Any, lengths: tuple[int, int, int]) -> None:
    config, (rows, prompt, completion) = CONFIGS[name], lengths
    (two, model), (one, _) = (kept(config, layers, getattr(torch, dtype), lengths) for layers in (2, 1))
    decoder = Decoder.of(config.to_dict(), {name: each.shape for name, each in model.model.named_parameters()})
    assert decoder is not None
    tokens = prompt + rows * (completion - 1)
    keys = rows * (prompt + completion - 1) / tokens
    assert two - one == pytest.approx(tokens * decoder.layer_bytes(dtype, keys), rel=0.02)


def allocated(config: Any, layers: int, dtype: torch.dtype, lengths: tuple[int, int, int]) -> int:
    """Bytes that are there after a forward under selective checkpointing, and were not before, by torch's profiler."""
    model, batch = policy(config, layers, dtype, lengths)
    checkpoint_selectively(model.model)
    gc.collect()  # models of other tests, which would go meanwhile
    with torch.profiler.profile(profile_memory=True) as profile:
        logprobs = model(batch)
    assert logprobs.requires_grad
    return sum(each.nbytes() for each in profile.profiler.kineto_results.events() if each.name() == "[memory]")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_selective_checkpointing_keeps_what_the_formula_says(name: str, dtype: Any) -> None:
    config, lengths = CONFIGS[name], (4, 30, 60)
    two, one = (allocated(config, layers, getattr(torch, dtype), lengths) for layers in (2, 1))
    decoder = Decoder.of(config.to_dict(), {})
    assert decoder is not None
    tokens = 30 + 4 * 59
    assert two - one == pytest.approx(tokens * decoder.kept_bytes(dtype, "selective"), rel=0.02)
    assert decoder.kept_bytes(dtype, "selective") < 0.5 * decoder.kept_bytes(dtype, False)


def test_the_tokens_that_fit_take_what_there_is() -> None:
    decoder = Decoder(512, 12, 512, 512, 1536, qk_norm=True)
    for checkpointing in CHOICES:
        for room in (10**9, 8 * 10**9):
            fit = decoder.num_tokens(room, "bfloat16", checkpointing)
            assert 0.98 * room < decoder.batch_bytes(fit, "bfloat16", checkpointing) <= room
    assert decoder.num_tokens(0, "float32", checkpointing=False) == 0
    full, selective, saving = (decoder.batch_bytes(4096, "float32", each) for each in CHOICES)
    assert saving < selective < full / 2
    assert saving < full / 4


def test_no_estimate_is_made_of_what_the_formula_does_not_know() -> None:
    assert Decoder.of({"n_embd": 64, "n_layer": 2, "n_head": 4}, {}) is None
    experts = Qwen3Config(**SIZES).to_dict() | {"num_experts": 8}
    assert Decoder.of(experts, {}) is None
    assert (
        Decoder.of(Qwen3Config(**SIZES).to_dict(), dict.fromkeys(Qwen3ForCausalLM._tied_weights_keys or ())) is not None
    )
