"""Logits in float32, whatever the weights are in: in bfloat16 those of 16 to 32 would lie an eighth apart.

GIFT sums the log-ratios of a completion and divides by their spread inside the group, so that rounded logits add a
noise of the same size (benchmarks/head_noise.py). ScaleRL (arXiv 2510.13786) and MiniMax-M1 (arXiv 2506.13585) met it.
"""

from typing import Any

import torch
from torch import Tensor


def float32_product(states: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """states [N, H] times weight [V, H] transposed: float32 [N, V], in `out` where that is given; float64 stays."""
    if weight.dtype in (torch.float32, torch.float64):
        return torch.mm(states, weight.t(), out=out)
    # The products are of the weight's type, and added up in float32 as they always are; torch has no gradient of that.
    if states.is_cuda and not (torch.is_grad_enabled() and states.requires_grad):
        return torch.mm(states, weight.t(), out_dtype=torch.float32, out=out)
    return torch.mm(states.float(), weight.float().t(), out=out)


def with_float32_logits(model: Any) -> Any:
    """The model, whose output head gives such logits; for sampling, without gradient."""
    head: Any = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.dtype != torch.float32:
        weight, bias = head.weight, head.bias

        def forward(states: Tensor) -> Tensor:
            logits = float32_product(states.flatten(0, -2), weight).unflatten(0, states.shape[:-1])
            return logits if bias is None else logits + bias

        head.forward = forward  # type: ignore[method-assign, assignment]
    return model
