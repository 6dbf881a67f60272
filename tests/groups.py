"""Groups of random completions in float64, shared by the tests of the methods."""

from typing import Any

import torch
from torch import Tensor

from gift.methods.groups import Groups
from gift.methods.making import groups_of


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
    anchor = torch.full((int(lengths.sum()),), -1.0, dtype=rewards.dtype)
    given = {
        "ref_logprobs": anchor if ref_logprobs is None else ref_logprobs,
        "old_logprobs": anchor if old_logprobs is None else old_logprobs,
    }
    return groups_of(rewards, mask, lengths, 2 * int(lengths.max()), **given, **fields)


def two_components(first: Any, second: Any, weights: tuple[float, float], **fields: Any) -> Groups:
    """Groups whose rewards are the weighted sum of two components [P, G]."""
    components = torch.stack([torch.as_tensor(first), torch.as_tensor(second)], -1).to(torch.float64)
    factors = torch.tensor(weights, dtype=torch.float64)
    known = torch.ones_like(components, dtype=torch.bool)
    total = fields.pop("rewards", (components * factors).sum(-1))
    return make_groups(total, **{"components": components, "known": known, "weights": factors, **fields})
