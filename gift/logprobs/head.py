"""The output head as a function from hidden states to token log-probs, one tile of the vocabulary at a time."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from gift.logprobs.logits import float32_product
from gift.logprobs.settings import TILE_BYTES


class LogprobHead(nn.Module):
    """log softmax(hidden W^T / temperature)[target]; the [N, vocabulary] logits never exist, forward or backward.

    `linear` is the model's output embedding. Its weight stands here as a parameter of this module, too, so that ZeRO-3
    gathers it for this module's forward and backward. `tied` takes its gradient where it is the input embedding's, too.
    """

    def __init__(
        self, linear: Any, temperature: float, tied: "TiedGradient | None" = None, tile_bytes: int | None = None
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter = linear.weight
        self.bias: nn.Parameter | None = getattr(linear, "bias", None)
        self.temperature, self.tied, self.tile_bytes = temperature, tied, tile_bytes
        self.steps: Steps = PLAIN

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden: float [N, H], targets: int64 [N]; returns nats, float32 [N]."""
        room = self.tile_bytes or TILE_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
        width = max(1, room // (4 * max(1, len(hidden))))
        how = self.temperature, width, self.tied, self.steps
        logprobs: Tensor = _Logprobs.apply(hidden, self.weight, self.bias, targets, how)
        return logprobs


class _Logprobs(torch.autograd.Function):
    """Forward keeps each row's largest logit and sum of exp(logit - it); backward computes the tiles of logits again.

    With p = softmax(z) and z = h W^T / T the gradient of sum(c logprob) is g = c (onehot(target) - p) / T by logit,
    hence g W by hidden state and g^T h by weight: four matrix products where autograd's three keep all logits. As tiles
    are columns, each row of the weight's gradient is made by one product, whatever the dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        how: "tuple[float, int, TiedGradient | None, Steps]",
    ) -> Tensor:
        temperature, width, _, (add, _) = how
        top = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(top)
        chosen = torch.zeros_like(top)
        logits_of = _Tiles(hidden, weight, bias, temperature, width)
        for start, stop in logits_of.tiles:
            top, total, chosen = add(logits_of(start, stop), (targets - start).unsqueeze(1), top, total, chosen)
        ctx.save_for_backward(hidden, targets, top, total)
        ctx.head = (weight, bias, *how)  # not saved: under ZeRO-3 the weight's storage comes and goes
        return (chosen - top - total.log()).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, top, total = ctx.saved_tensors
        weight, bias, temperature, width, tied, (_, gradient) = ctx.head
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        coefficients = gradients[0].float().unsqueeze(1) / temperature
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        by_weight, adds = None, False
        if need_weight:
            by_weight, adds = tied.tensor(weight) if tied else (torch.empty_like(weight), False)
        by_bias = torch.empty_like(bias) if need_bias else None
        logits_of = _Tiles(hidden, weight, bias, temperature, width)
        for start, stop in logits_of.tiles:
            local = (targets - start).unsqueeze(1)
            by_logit, summed = gradient(
                logits_of(start, stop), local, top, total, coefficients, hidden.dtype, by_bias is not None
            )
            if by_bias is not None:
                by_bias[start:stop] = summed
            if by_weight is not None:
                by_weight[start:stop].addmm_(by_logit.t(), hidden, beta=int(adds))
            if need_hidden and hidden.dtype == torch.float32:
                by_hidden.addmm_(by_logit, weight[start:stop])
            elif need_hidden:
                by_hidden += by_logit @ weight[start:stop]
        return by_hidden.to(hidden.dtype) if need_hidden else None, None if tied else by_weight, by_bias, None, None


class _Tiles:
    """Logits of one range of the vocabulary, in a buffer that the next tile uses again."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, width: int) -> None:
        self.hidden, self.weight, self.bias, self.temperature = hidden.detach(), weight.detach(), bias, temperature
        vocabulary = len(weight)
        self.tiles = [(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]
        self.buffer = hidden.new_empty(
            len(hidden) * min(width, vocabulary), dtype=torch.promote_types(weight.dtype, torch.float32)
        )

    def __call__(self, start: int, stop: int) -> Tensor:
        """float32 [N, stop - start], to be overwritten by the caller at will."""
        out = self.buffer[: len(self.hidden) * (stop - start)].view(len(self.hidden), stop - start)
        logits = float32_product(self.hidden, self.weight[start:stop], out)
        if self.bias is not None:
            logits += self.bias.detach()[start:stop]
        return logits if self.temperature == 1 else logits.div_(self.temperature)


def _add_tile(
    logits: Tensor, local: Tensor, top: Tensor, total: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest logit so far, the sum of exp(logit - it), and its target's logit: [N, 1]. Overwrites `logits`.

    local: int64 [N, 1], each target's column in this tile, beyond it where it is in another.
    """
    column, inside = _column(logits, local)
    chosen = torch.where(inside, logits.gather(1, column), chosen)
    new_top = torch.maximum(top, logits.amax(1, keepdim=True))
    total = total * (top - new_top).exp_() + logits.sub_(new_top).exp_().sum(1, keepdim=True)
    return new_top, total, chosen


def _tile_gradient(
    logits: Tensor,
    local: Tensor,
    top: Tensor,
    total: Tensor,
    coefficients: Tensor,
    dtype: torch.dtype,
    sums: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient by logit in a type [N, width], and its sums by column [width] in float32. Overwrites `logits`."""
    by_logit = logits.sub_(top).exp_().mul_(-coefficients / total)
    column, inside = _column(logits, local)
    by_logit.scatter_add_(1, column, torch.where(inside, coefficients, 0.0))
    return by_logit.to(dtype), by_logit.sum(0) if sums else None


def _column(logits: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's column in the tile (column 0 where it is in another), and whether it is in this one: [N, 1]."""
    inside = (local >= 0) & (local < logits.shape[1])
    return torch.where(inside, local, 0), inside


Steps = tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor | None]]]
"""What is done with a tile of logits in forward and backward."""
PLAIN: Steps = (_add_tile, _tile_gradient)


@cache
def compiled_steps() -> Steps:
    """The same by torch.compile, which fuses what the plain steps do to a tile one after the other."""

    def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
        def on_copy(logits: Tensor, *rest: Any) -> Any:
            return step(logits.clone(), *rest)  # no copy is made: else all that is done in place would be written back

        return torch.compile(on_copy, dynamic=True)

    return compiled(_add_tile), compiled(_tile_gradient)


class TiedGradient:
    """One gradient for a weight that is both output head and input embedding, where autograd would hold three at once.

    Autograd makes the head's gradient, then the embedding's (nearly all zeros), adds them, and adds the sum to that of
    earlier micro-batches: each as large as the weight, [vocabulary, H]. Here the head writes into one tensor, and the
    embedding adds its rows to it. The head's backward always runs first: its output depends on the embedding's.

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
