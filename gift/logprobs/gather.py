"""Rows of a tensor, some of them many times: what a group's completions take from their one prompt."""

from typing import Any

import torch
from torch import Tensor


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index]: x [N, ...], index int64 [M]; the gradient of a row is summed in float32 and rounded once.

    The coefficients of a group sum to nearly 0, and with them what its completions send to their prompt. GPUs add the
    rows of `index_select` in the type of the tensor, and in bfloat16 that would keep the rounding of each addition.
    """
    out: Tensor = _GatherRows.apply(x, index)
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        gradient = gradients[0]
        total = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:], dtype=torch.float32)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None
