"""Groups of random completions in float64, shared by the tests of the methods."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gift.methods.groups import Groups, Step


def make_groups(
    rewards: Tensor,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    **fields: Any,
) -> Groups:
    """Groups with these rewards [P, G]; completions of one token with log-prob -1 unless said otherwise."""
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    lengths = torch.ones_like(rewards, dtype=torch.int64) if lengths is None else lengths
    completion = torch.repeat_interleave(torch.arange(rewards.numel()), lengths.flatten())
    anchor = torch.full((len(completion),), -1.0, dtype=rewards.dtype)
    trains = lengths * mask
    step = Step(len(rewards), int(mask.sum()), int(trains.sum()), 2 * int(lengths.max()))
    made = Groups(
        mask=mask,
        sampled=torch.ones_like(mask),
        rewards=rewards,
        components=rewards.unsqueeze(-1),
        known=mask.unsqueeze(-1),
        weights=torch.ones(1, dtype=rewards.dtype),
        names=("reward",),
        lengths=lengths,
        truncated=torch.zeros_like(mask),
        answers=torch.full_like(lengths, -1),
        domains=(None,) * len(rewards),
        solved=torch.full((len(rewards),), torch.nan, dtype=rewards.dtype),
        completion=completion,
        ref_logprobs=anchor if ref_logprobs is None else ref_logprobs,
        old_logprobs=anchor if old_logprobs is None else old_logprobs,
        rollout_logprobs=anchor if old_logprobs is None else old_logprobs,
        token_weights=None,
        step=step,
    )
    return replace(made, **fields)


def two_components(first: Any, second: Any, weights: tuple[float, float], **fields: Any) -> Groups:
    """Groups whose rewards are the weighted sum of two components [P, G]."""
    components = torch.stack([torch.as_tensor(first), torch.as_tensor(second)], -1).to(torch.float64)
    factors = torch.tensor(weights, dtype=torch.float64)
    known = torch.ones_like(components, dtype=torch.bool)
    total = fields.pop("rewards", (components * factors).sum(-1))
    return make_groups(total, **{"components": components, "known": known, "weights": factors, **fields})
