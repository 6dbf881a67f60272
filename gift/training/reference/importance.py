"""How much the final answer of a completion depends on each token before it, under a policy (OAR, arXiv 2601.07408)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift.logprobs.attention import gather_rows
from gift.logprobs.batches import row_batches, split
from gift.logprobs.layouts import TokenBatch, token_batch
from gift.logprobs.logits import float32_product
from gift.logprobs.tokens import TokenLogprobs
from gift.project.ragged import Ragged

At = Literal["first", "mean", "last"]


@dataclass(frozen=True)
class Reasoned:
    """A completion with a final answer: its tokens, those of its prompt, and where in it the answer is.

    The answer is `tokens[first:stop]`; before it is what is weighed. seed: of the noise.
    """

    prompt: NDArray[np.int32]
    tokens: NDArray[np.int32]
    first: int
    stop: int
    seed: int

    def looked_at(self, at: At) -> range:
        """The tokens whose distributions say what the answer is; `last` is the one behind it, there or not."""
        return {"first": range(self.first, self.first + 1), "last": range(self.stop, self.stop + 1)}.get(
            at, range(self.first, self.stop)
        )

    def shown(self, at: At) -> NDArray[np.int32]:
        """The tokens up to the last of these. It is only predicted, whatever it is."""
        return np.append(self.tokens, np.int32(0))[: self.looked_at(at).stop]


def perturbed(model: TokenLogprobs, row: Reasoned, at: At, padding: int, budget: int) -> NDArray[np.float64]:
    """KL(answer | answer with the token replaced by padding) of each token before the answer: [first].

    A forward for each, in batches of at most `budget` tokens, and one for the answer as it is.
    """
    shown = row.shown(at)
    variants = np.tile(shown, (row.first + 1, 1))
    variants[np.arange(row.first), np.arange(row.first)] = padding  # the last stays as it is
    lengths = np.tile([len(row.prompt), len(shown)], (len(variants), 1))
    parts = split(range(row.first), lengths, budget, model.layout)

    def answers(rows: Sequence[int]) -> Tensor:
        chosen = Ragged.of([variants[index] for index in rows], np.int32)
        batch = _batch(model, Ragged.of([row.prompt] * len(rows), np.int32), chosen)
        return _answers(model, model.states(batch), batch, [row.looked_at(at)] * len(rows), chosen)

    out = np.zeros(row.first)
    with torch.no_grad():
        clean = answers([row.first])
        for part in parts:
            out[part] = _kl(clean, answers(part)).clamp_min(0).double().cpu().numpy()  # below 0 is rounding
    return out


def by_gradient(
    model: TokenLogprobs, rows: Sequence[Reasoned], groups: list[list[int]], at: At, noise: float, budget: int
) -> list[NDArray[np.float64]]:
    """|gradient . embedding| of each token before the answer, of KL(answer | answer of noisy embeddings).

    groups: rows with one prompt. The noise of a row is drawn from its seed alone.
    """
    prompts = Ragged.of([row.prompt for row in rows], np.int32)
    shown = Ragged.of([row.shown(at) for row in rows], np.int32)
    lengths = np.stack([prompts.lengths, shown.lengths], axis=1)
    out: list[NDArray[np.float64]] = [np.zeros(0)] * len(rows)
    for part in row_batches(groups, lengths, budget, model.layout):
        own = shown.take(part)
        batch = _batch(model, prompts.take(part), own)
        looked_at = [rows[index].looked_at(at) for index in part]
        with torch.no_grad():
            embedded = model.model.get_input_embeddings()(batch.input_ids)
            clean = _answers(model, model.states(batch), batch, looked_at, own)
        # Token t of a completion stands where its token t + 1 is predicted.
        places = [
            batch.positions[start + 1 : start + 1 + rows[index].first]
            for start, index in zip(own.offsets[:-1], part, strict=True)
        ]
        noisy = embedded.clone()
        flat = noisy.view(-1, noisy.shape[-1])
        for place, index in zip(places, part, strict=True):
            flat[place] += noise * _drawn(rows[index], flat)
        noisy.requires_grad_()
        with torch.enable_grad():
            loss = _kl(clean, _answers(model, model.states(batch, noisy), batch, looked_at, own)).sum()
            (gradient,) = torch.autograd.grad(loss, [noisy])
        saliency = (gradient.double() * embedded.double()).sum(-1).abs().flatten()
        for place, index in zip(places, part, strict=True):
            out[index] = saliency[place].cpu().numpy()
    return out


def _batch(model: TokenLogprobs, prompts: Ragged, completions: Ragged) -> TokenBatch:
    return token_batch(prompts, completions, model.layout).to(model.head.weight.device)


def _answers(
    model: TokenLogprobs, states: Tensor, batch: TokenBatch, looked_at: Sequence[range], completions: Ragged
) -> Tensor:
    """Log-probs [rows, vocabulary] of the mean of the logits where the tokens in `looked_at` are predicted."""
    starts = zip(completions.offsets[:-1].tolist(), looked_at, strict=True)
    tokens = torch.tensor([start + token for start, each in starts for token in each], device=states.device)
    counts = torch.tensor([len(each) for each in looked_at], device=states.device)
    row = torch.arange(len(counts), device=states.device).repeat_interleave(counts)
    hidden = gather_rows(states, batch.positions[tokens]).float()
    # The mean of logits is that of mean hidden states.
    mean = hidden.new_zeros(len(counts), hidden.shape[1]).index_add(0, row, hidden) / counts.unsqueeze(-1)
    logits = float32_product(mean.to(states.dtype), model.head.weight)
    if model.head.bias is not None:
        logits = logits + model.head.bias
    return (logits / model.head.temperature).log_softmax(-1)


def _kl(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean | other) of each row, nats."""
    return (clean.exp() * (clean - other)).sum(-1)


def _drawn(row: Reasoned, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(row.seed)
    return torch.randn(row.first, like.shape[1], generator=generator).to(like)
