"""Shape: explicit rewards in, training targets out. Pure functions of tensors [P, G] (prompts, group)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gift.methods import statistics as groups
from gift.methods.settings import Advantages

EPS = 1e-6
WHITENING_EPS = 1e-4  # TRL's and the authors' of GDPO


@dataclass(frozen=True)
class Rewards:
    """The explicit rewards of P groups of G completions.

    total: float [P, G]; mask: bool [P, G], completions that have a total. components: float [P, G, K], one of each
    reward function, 0 where its gate is shut; known: bool [P, G, K], where the function gave a value and the completion
    has a total; weights: float [K].
    """

    total: Tensor
    mask: Tensor
    components: Tensor
    known: Tensor
    weights: Tensor

    def decoupled(self, kind: Advantages) -> bool:
        """Whether each component is standardised by itself; of a single one that is the total's own."""
        return kind == "gdpo" and self.components.shape[-1] > 1

    def take(self, chosen: list[int]) -> "Rewards":
        """Some of the groups."""
        return Rewards(self.total[chosen], self.mask[chosen], self.components[chosen], self.known[chosen], self.weights)


def single(total: Tensor, mask: Tensor) -> Rewards:
    """The rewards of one function of weight 1."""
    return Rewards(total, mask, total.unsqueeze(-1), mask.unsqueeze(-1), torch.ones(1))


def standardise(rewards: Tensor, mask: Tensor) -> Tensor:
    """Group-standardised rewards A = (r - mean) / std (Bessel's n - 1), the target of GIFT (arXiv 2510.23868).

    rewards: float [P, G]; mask: bool [P, G], the completions that have a reward. Masked rows give 0, and so does a
    group whose rewards are all equal: it holds no preference.
    """
    centred = groups.centre(rewards, mask)
    deviation = groups.spread(centred, mask)
    has_spread = deviation > EPS
    return torch.where(has_spread, centred / deviation.clamp_min(EPS), torch.zeros_like(centred))


def group_advantages(rewards: Rewards, kind: Advantages) -> Tensor:
    """What each completion is worth inside its group, [P, G]; all zeros where the group holds no preference.

    group: the standardised total. gdpo (arXiv 2601.05242): sum_k weight_k x the standardised component k, so that a
    component with a small spread is not drowned by one with a large spread. With one component the two are one.
    """
    if not rewards.decoupled(kind):
        return standardise(rewards.total, rewards.mask)
    each = standardise(rewards.components.movedim(-1, 0), rewards.known.movedim(-1, 0))
    return torch.einsum("k,kpg->pg", rewards.weights, each)


def step_advantages(rewards: Rewards, kind: Advantages) -> Tensor:
    """The targets of the groups of one optimizer step, [P, G].

    gdpo divides its sums by their standard deviation (n - 1) over the completions of the step, after taking the mean
    away: with several components their size would else depend on how many agree.
    """
    advantages = group_advantages(rewards, kind)
    if not rewards.decoupled(kind):
        return advantages
    flat, mask = advantages.reshape(1, -1), rewards.mask.reshape(1, -1)
    centred = groups.centre(flat, mask)
    return (centred / (groups.spread(centred, mask) + WHITENING_EPS)).view(advantages.shape)
