"""pods: of each group the completions whose rewards differ most (PODS, arXiv 2504.13818)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gift.methods.groups import Groups, Select
from gift.methods.statistics import centre
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class Pods(Section):
    """How many completions of a group train."""

    keep: Annotated[int, Field(ge=2, description="completions of a group that train")]


def pods(groups: Groups, settings: Pods) -> Tensor:
    """The `keep` completions of the largest variance of rewards: some of the best and some of the worst.

    Only such sets can be the largest, so all keep + 1 of them are tried; of equal ones that with fewest of the best.
    """
    mask, count = groups.mask, groups.mask.sum(-1, keepdim=True)
    order = groups.rewards.masked_fill(~mask, float("inf")).argsort(dim=-1, stable=True)
    rank = order.argsort(-1)
    chosen, largest = mask, groups.rewards.new_full(count.shape, -1.0)
    for best in range(settings.keep + 1):
        some = mask & ((rank < settings.keep - best) | (rank >= count - best))
        squares = centre(groups.rewards, some).square().sum(-1, keepdim=True)
        better = (squares > largest) & (count > settings.keep)
        chosen, largest = some.where(better, chosen), squares.where(better, largest)
    return chosen


METHOD = Select(Pods, pods)
