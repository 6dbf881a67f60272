"""with_given: GRAO's advantages (arXiv 2508.07750), of completions beside an answer that was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class WithGiven(Section):
    """The paper's equation 4 has statistics of what was sampled, its text counts the given answer among the group."""

    statistics: Literal["sampled", "group"] = "sampled"


def with_given(groups: Groups, settings: WithGiven) -> Targets:
    """(r - mean) / std with n, not n - 1: of the given answer in the whole group, of others among those sampled.

    With `statistics: group` all are of the whole group; the sampled then do not add up to 0.
    """
    whole = _standardise(groups.rewards, groups.mask)
    if settings.statistics == "group":
        return Targets(whole)
    sampled = groups.mask & groups.sampled
    return Targets(_standardise(groups.rewards, sampled).where(sampled, whole))


def _standardise(rewards: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(-1, keepdim=True)
    return standardise(rewards, mask) * (count / (count - 1).clamp_min(1)).sqrt()


METHOD = Shape(WithGiven, with_given, given=True)
