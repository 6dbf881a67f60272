"""at_stake: groups of equal rewards do not train (DAPO's dynamic sampling, arXiv 2503.14476, without new samples)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gift.methods.components import component
from gift.methods.groups import Groups, Select
from gift.methods.statistics import EPS
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class AtStake(Section):
    """Which reward must differ."""

    component: str | None = Field(None, description="a reward function; null: the total reward")


def at_stake(groups: Groups, settings: AtStake) -> Tensor:
    """All of a group whose largest and least reward are more than 1e-6 apart, or none of it."""
    values, known = component(groups, settings.component)
    largest = values.masked_fill(~known, float("-inf")).amax(-1, keepdim=True)
    least = values.masked_fill(~known, float("inf")).amin(-1, keepdim=True)
    return groups.mask & (largest - least > EPS)


METHOD = Select(AtStake, at_stake, asks_equal=lambda settings: settings.component is None)
