"""One gradient for a weight that is both output head and input embedding, where autograd would hold three at once.

Autograd makes the head's gradient, then the embedding's (nearly all zeros), adds them, and adds the sum to that of
earlier micro-batches: each as large as the weight, [vocabulary, H]. Here the head writes into one tensor, and the
embedding adds its rows to it. The head's backward always runs first: its output depends on the embedding's.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class TiedGradient:
    """The gradient of one tied weight, between the head's backward and the embedding's.

    Where `accumulates`, the head adds to a `weight.grad` that is there. That is right for `backward()` alone:
    `torch.autograd.grad` leaves `weight.grad` as it is.
    """

    def __init__(self) -> None:
        self.accumulates = False
        self.waiting: Tensor | None = None

    def tensor(self, weight: Tensor) -> tuple[Tensor, bool]:
        """Where the head's gradient goes, and whether it is to be added to what is there (else it overwrites)."""
        if self.accumulates and weight.grad is not None:
            return weight.grad, True
        self.waiting = torch.empty_like(weight, requires_grad=False)
        return self.waiting, False

    def with_rows(self, rows: Tensor) -> Tensor:
        """The embedding's gradient (sparse) with the head's; by itself where that is in `weight.grad` already."""
        total, self.waiting = self.waiting, None
        return rows if total is None else total.add_(rows)


def tie(model: Any) -> TiedGradient | None:
    """Give the model's input embedding a share in its head's gradient; None where the two are different weights."""
    embedding = model.get_input_embeddings()
    is_plain = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
    if not is_plain or embedding.weight is not model.get_output_embeddings().weight:
        return None
    tied = TiedGradient()
    embedding.forward = partial(_look_up, embedding, tied)
    return tied


def _look_up(embedding: nn.Embedding, tied: TiedGradient, ids: Tensor) -> Tensor:
    found: Tensor = _Lookup.apply(ids, embedding.weight, embedding.padding_idx, tied)
    return found


class _Lookup(torch.autograd.Function):
    """weight[ids], as torch's embedding; a token's rows of the gradient are summed in their order, on any device."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.facts = weight.shape, padding_idx, tied
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return None, None, None, None
        shape, padding_idx, tied = ctx.facts
        ids, rows = ctx.saved_tensors[0].flatten(), gradients[0].flatten(0, -2)
        if padding_idx is not None:
            rows = rows.masked_fill((ids == padding_idx).unsqueeze(1), 0)
        by_token = torch.sparse_coo_tensor(ids.unsqueeze(0), rows, shape, check_invariants=False).coalesce()
        return None, tied.with_rows(by_token), None, None
