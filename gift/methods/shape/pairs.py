"""pairs: the best completion of a group against its worst (online DPO, arXiv 2402.04792)."""

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import EPS
from gift.project.sections import Section


class Pairs(Section):
    """No choices."""


def pairs(groups: Groups, _: Pairs) -> Targets:
    """+1 for the largest reward, -1 for the least, else 0; of equals the first. Where all are equal, all are 0."""
    highest = groups.rewards.masked_fill(~groups.mask, float("-inf")).max(-1, keepdim=True)
    lowest = groups.rewards.masked_fill(~groups.mask, float("inf")).min(-1, keepdim=True)
    signs = groups.rewards.new_zeros(groups.mask.shape)
    signs = signs.scatter(-1, highest.indices, 1.0).scatter(-1, lowest.indices, -1.0)
    return Targets(signs.where(highest.values - lowest.values > EPS, 0.0))


METHOD = Shape(Pairs, pairs, makes="pairs")
