"""Shape: explicit rewards in, training targets out. Pure functions of tensors [P, G] (prompts, group)."""

import torch
from torch import Tensor

from gift import groups

EPS = 1e-6


def standardise(rewards: Tensor, mask: Tensor) -> Tensor:
    """Group-standardised rewards A = (r - mean) / std (Bessel's n - 1), the target of GIFT (arXiv 2510.23868).

    rewards: float [P, G]; mask: bool [P, G], the completions that have a reward. Masked rows give 0, and so does a
    group whose rewards are all equal: it holds no preference.
    """
    centred = groups.centre(rewards, mask)
    deviation = groups.spread(centred, mask)
    has_spread = deviation > EPS
    return torch.where(has_spread, centred / deviation.clamp_min(EPS), torch.zeros_like(centred))
