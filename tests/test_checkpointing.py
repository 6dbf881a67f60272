"""Selective activation checkpointing: less is kept for backward, and no gradient has another byte."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gift.logprobs.checkpointing import ATTENTION, checkpoint_selectively
from gift.logprobs.layouts import token_batch
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from gift.project.ragged import Ragged

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Any] = {
    "llama, untied": LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=False),
    "llama, tied, with biases": LlamaConfig(
        **SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True),
    "norms behind the products": Olmo2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "other norms and linear layers": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=60, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
}
LAYOUTS = ("shared", "packed", "padded")


def policy(config: Any, dtype: torch.dtype, lora: bool = False) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype).eval()
    if lora:
        inject_adapter_in_model(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), model)
    return model


def rows() -> tuple[Ragged, Ragged]:
    draw = np.random.default_rng(0).integers
    prompts = [draw(0, 60, 9)] * 3 + [draw(0, 60, 4)] * 2
    return Ragged.of(prompts, np.int32), Ragged.of([draw(0, 60, size) for size in (3, 12, 7, 1, 5)], np.int32)


def gradients(model: Any, layout: Any, selective: bool, passes: int = 2) -> dict[str, torch.Tensor]:
    """Log-probs and the gradient of each trained weight, summed over some passes."""
    logprobs = TokenLogprobs(model, 0.8, layout)
    if selective:
        checkpoint_selectively(model)
    for _ in range(passes):
        found = logprobs(token_batch(*rows(), layout))
        (found * torch.linspace(-1, 1, len(found))).sum().backward()
    made = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**made, "log-probs": found.detach()}


def check_same(config: Any, layout: str, dtype: str, lora: bool = False) -> None:
    without, selective = (gradients(policy(config, getattr(torch, dtype), lora), layout, on) for on in (False, True))
    assert without.keys() == selective.keys()
    assert any("lora_A" in name for name in without) == lora
    assert [name for name in without if not torch.equal(without[name], selective[name])] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in CONFIGS if "other" not in name])
def test_gradients_are_the_same_bytes(name: str, layout: str, dtype: str) -> None:
    check_same(CONFIGS[name], layout, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_an_adapter_are_the_same_bytes(layout: str, dtype: str) -> None:
    import deepspeed  # noqa: F401 - whose linear function, now everywhere, saves its input even where nothing trains

    check_same(CONFIGS["qwen3"], layout, dtype, lora=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_may_lie_elsewhere_in_backward(dtype: str) -> None:
    """ZeRO-3 gathers several into one tensor, in the backward pass others together than in the forward pass."""

    def loss_of(model: Any) -> torch.Tensor:
        found = TokenLogprobs(model, 0.8, "packed")(token_batch(*rows(), "packed"))
        return (found * torch.linspace(-1, 1, len(found))).sum()

    plain, moved = (policy(CONFIGS["qwen3"], getattr(torch, dtype)) for _ in range(2))
    loss_of(plain).backward()
    checkpoint_selectively(moved)
    weights = [layer.weight for layer in moved.model.layers.modules() if isinstance(layer, nn.Linear)]
    together(weights)
    loss = loss_of(moved)
    together(weights[::-1])
    loss.backward()
    pairs = zip(plain.parameters(), moved.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)  # type: ignore[arg-type]


def together(weights: list[torch.Tensor]) -> None:
    """Copies of them, one behind the other in one tensor; where they were nobody shall read."""
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    old = [weight.data for weight in weights]
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.data = part.view_as(weight)
    for each in old:
        each.fill_(float("nan"))


def test_a_model_with_other_parts_has_the_same_gradients() -> None:
    check_same(CONFIGS["other norms and linear layers"], "padded", "float32")


def test_products_are_made_once_and_dropout_stays_off() -> None:
    counts: dict[str, int] = {}
    model = policy(CONFIGS["qwen3"], torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            forward = module.forward

            def counted(x: torch.Tensor, name: str = name, forward: Any = forward) -> torch.Tensor:
                counts[name] = counts.get(name, 0) + 1
                return forward(x)

            module.forward = counted  # type: ignore[method-assign]
    gradients(model, "padded", selective=True, passes=1)
    assert set(counts.values()) == {1}
    assert len(counts) == 14
    assert not any(module.training for module in model.modules())


class Calls(TorchDispatchMode):
    """Counts the kernels of attention that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in ATTENTION
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_attention_is_computed_once(layout: Any, dtype: torch.dtype) -> None:
    def calls(selective: bool) -> int:
        with Calls() as calls:
            gradients(policy(CONFIGS["qwen3"], dtype), layout, selective, passes=1)
        return calls.count

    assert calls(selective=True) == calls(selective=False) > 0


def test_a_forward_without_gradient_keeps_nothing() -> None:
    model = policy(CONFIGS["qwen3"], torch.float32)
    logprobs = TokenLogprobs(model, 1.0, "shared")
    batch = token_batch(*rows(), "shared")
    with torch.no_grad():
        before = logprobs(batch)
        checkpoint_selectively(model)
        after = logprobs(batch)
    assert torch.equal(before, after)
    assert not after.requires_grad


def test_models_of_which_products_would_be_made_twice_are_refused() -> None:
    config = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
    with pytest.raises(UserError, match=r"selective: not with this model: .*Qwen3MoeDecoderLayer are in no linear"):
        checkpoint_selectively(policy(config, torch.float32))


def test_models_whose_layers_are_not_known_are_refused() -> None:
    class Model(nn.Module):
        def get_decoder(self) -> nn.Module:
            return self

    with pytest.raises(UserError, match="transformers names no layers of it"):
        checkpoint_selectively(Model())


@pytest.fixture(params=["torch's linear function", "DeepSpeed's, which ZeRO 3 leaves everywhere"])
def linear(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    if "DeepSpeed" in request.param:
        monkeypatch.setattr(nn.functional, "linear", zero3_linear_wrap)


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("name", ["qwen2", "llama, tied, with biases"])
def test_gradients_are_the_same_bytes_whoever_multiplies(name: str) -> None:
    check_same(CONFIGS[name], "shared", "float32")


@pytest.mark.usefixtures("linear")
def test_models_that_write_into_what_a_linear_layer_made_are_refused() -> None:
    model = policy(CONFIGS["qwen2"], torch.float32)
    attention = model.model.layers[0].self_attn
    attention.q_proj.register_forward_hook(lambda module, inputs, output: output.clamp_(-1, 1))
    with pytest.raises(UserError, match="it writes into what a linear layer or attention made"):
        gradients(model, "padded", selective=True)
