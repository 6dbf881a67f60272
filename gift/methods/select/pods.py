"""pods: of each group a few completions, such as those whose rewards differ most (PODS, arXiv 2504.13818)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gift.methods.groups import Groups, Select
from gift.methods.statistics import centre
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class Pods(Section):
    """How many completions of a group train, and which: the rules that the authors' code has."""

    keep: Annotated[int, Field(ge=2, description="completions of a group that train")]
    rule: Literal["max_variance", "max_reward", "first"] = Field(
        "max_variance",
        description="first is their random: samples of a prompt are independent, so the first are a random choice",
    )


def pods(groups: Groups, settings: Pods) -> Tensor:
    """The `keep` completions that `rule` chooses; a group with no more stays whole."""
    mask, count = groups.mask, groups.mask.sum(-1, keepdim=True)
    if settings.rule == "first":
        return mask & (mask.cumsum(-1) <= settings.keep)
    order = groups.rewards.masked_fill(~mask, float("inf")).argsort(dim=-1, stable=True)
    rank = order.argsort(-1)
    if settings.rule == "max_reward":
        return mask & (rank >= count - settings.keep)
    return max_variance(groups.rewards, mask, rank, settings.keep)


def max_variance(rewards: Tensor, mask: Tensor, rank: Tensor, keep: int) -> Tensor:
    """The `keep` completions of the largest variance of rewards: some of the best and some of the worst.

    Only such sets can be the largest, so all keep + 1 of them are tried; of equal ones that with fewest of the best.
    """
    count = mask.sum(-1, keepdim=True)
    chosen, largest = mask, rewards.new_full(count.shape, -1.0)
    for best in range(keep + 1):
        some = mask & ((rank < keep - best) | (rank >= count - best))
        squares = centre(rewards, some).square().sum(-1, keepdim=True)
        better = (squares > largest) & (count > keep)
        chosen, largest = some.where(better, chosen), squares.where(better, largest)
    return chosen


METHOD = Select(Pods, pods)
