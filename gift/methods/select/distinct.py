"""distinct: a completion that a score hardly tells from one of the other sign does not train (DaGRPO's idea)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gift.methods.components import component
from gift.methods.groups import Groups, Select
from gift.methods.statistics import EPS, centre
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor


class Distinct(Section):
    """Which score tells completions apart, and how far."""

    component: str = Field(description="the reward function whose values are compared, such as a judge")
    least: Positive = Field(description="the least difference to any completion of the other sign")


def distinct(groups: Groups, settings: Distinct) -> Tensor:
    """What has |score_i - score_j| >= least to every j of its group on the other side of the mean reward.

    Both of a close pair go. A completion without a score, or with the mean reward, stays. DaGRPO (arXiv 2512.06337)
    asks a language model for the scores; its formula could not be found (UNCERTAIN).
    """
    scores, known = component(groups, settings.component)
    side = centre(groups.rewards, groups.mask)
    side = side.sign().where(known & (side.abs() > EPS), 0.0)
    opposite = side.unsqueeze(-1) * side.unsqueeze(-2) < 0
    gap = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).abs()
    nearest = gap.masked_fill(~opposite, float("inf")).amin(-1)
    return groups.mask & (nearest >= settings.least)


METHOD = Select(Distinct, distinct)
