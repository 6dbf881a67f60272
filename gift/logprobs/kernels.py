"""What a GPU computes with in place of PyTorch's operations, where launch.yaml says so: held against them first."""

from typing import Any

import torch
from torch import Tensor

from gift.logprobs.head import LogprobHead, compiled_steps
from gift.logprobs.liger import use_liger
from gift.logprobs.settings import Kernels
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError, in_a_line

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
"""Of a head's trial, as a share of the largest value."""
TRIAL = (70, 64, 300)
"""Tokens, hidden size and vocabulary."""
TRIED = ("log-probs", "gradient of the states", "gradient of the weight", "gradient of the bias")


def use_kernels(model: TokenLogprobs, wanted: Kernels, device: torch.device) -> None:
    """Have a model on its device compute with what is wanted; a `UserError` where that is not to be had."""
    ways = {
        "flash_attention": lambda: model.use_flash(device),
        "liger_kernel": lambda: use_liger(model.model, device),
        "compile_head": lambda: compile_head(model.head, device),
    }
    for key, use in ways.items():
        if not getattr(wanted, key):
            continue
        if problem := use() if device.type == "cuda" else "it is for GPUs":
            raise UserError(f"launch.yaml: {key}: true: {problem}; set it to false")


def compile_head(head: LogprobHead, device: torch.device) -> str | None:
    """Have torch compile what a head does with its tiles, or say what of a trial is not as without."""
    linear = torch.nn.Linear(*TRIAL[1:], bias=head.bias is not None, device=device, dtype=head.weight.dtype)
    try:
        plain, compiled = (_trial(linear, head.temperature, steps) for steps in (None, compiled_steps()))
    except Exception as error:  # of no compiler, say
        return in_a_line(error)
    for name, one, other in zip(TRIED, compiled, plain, strict=False):  # without a bias, none of a bias
        gap = float((one - other).float().abs().max() / other.float().abs().max())
        if not gap <= TOLERANCE[linear.weight.dtype]:
            return f"the {name} of a trial are others by {gap:.2g} of their largest value"
    head.steps = compiled_steps()
    return None


def _trial(linear: Any, temperature: float, steps: Any) -> list[Tensor]:
    """Three tiles, the last of them narrower."""
    tokens, size, vocabulary = TRIAL
    head = LogprobHead(linear, temperature, tile_bytes=4 * tokens * (vocabulary * 2 // 5))
    head.steps = steps or head.steps
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=noise).to(linear.weight).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=noise).to(hidden.device)
    logprobs = head(hidden, targets)
    return [logprobs.detach(), *torch.autograd.grad(logprobs.sin().sum(), [hidden, *linear.parameters()])]
