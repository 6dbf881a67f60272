"""pass_at_k: the best completion of a group alone has a target: by how much it beats the second (arXiv 2503.19595)."""

from __future__ import annotations

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import EPS, centre, spread
from gift.project.sections import Section

STD_EPS = 1e-6  # verl's


class PassAtK(Section):
    """No choices."""


def pass_at_k(groups: Groups, _: PassAtK) -> Targets:
    """(r_best - r_second) / (std + 1e-6), n - 1, of the best, 0 of all others: verl 0.9's `grpo_passk`.

    Where two are the best, all are 0.
    """
    rewards = groups.rewards.masked_fill(~groups.mask, float("-inf"))
    values, places = rewards.topk(2, -1)
    gap = (values[:, :1] - values[:, 1:]) / (spread(centre(groups.rewards, groups.mask), groups.mask) + STD_EPS)
    enough = (groups.mask.sum(-1, keepdim=True) >= 2) & (values[:, :1] - values[:, 1:] > EPS)
    return Targets(groups.rewards.new_zeros(groups.mask.shape).scatter(-1, places[:, :1], gap.where(enough, 0.0)))


METHOD = Shape(PassAtK, pass_at_k)
