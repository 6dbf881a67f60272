"""Pairs of a group: its best against its worst, all whose rewards differ enough, or of answers that were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import EPS
from gift.project.sections import Count, Section

if TYPE_CHECKING:
    from torch import Tensor


class Pairs(Section):
    """No choices."""


class AllPairs(Section):
    """AMIR-GRPO's authors (arXiv 2601.03661) set a margin of 1.5, of rewards that are larger than 1."""

    margin: Annotated[float, Field(ge=0, description="rewards of a pair differ by more than this")] = 0.0
    of_best: bool = Field(False, description="only pairs of the best, of equals the first (the authors' topk)")
    at_most: Count | None = Field(None, description="pairs of a group, those of the largest difference; null: all")


class GivenPairs(Section):
    """No choices."""


def pairs(groups: Groups, _: Pairs) -> Targets:
    """The largest reward against the least (online DPO, arXiv 2402.04792); of equals the first, none if all are equal.

    The target of the best is +1, of the worst -1, of others 0.
    """
    return _of_best_and_worst(groups, groups.mask)


def _of_best_and_worst(groups: Groups, among: Tensor) -> Targets:
    highest = groups.rewards.masked_fill(~among, float("-inf")).max(-1)
    lowest = groups.rewards.masked_fill(~among, float("inf")).min(-1)
    group = (highest.values - lowest.values > EPS).nonzero().squeeze(-1)
    best, worst = highest.indices[group], lowest.indices[group]
    signs = groups.rewards.new_zeros(groups.mask.shape)
    signs[group, best], signs[group, worst] = 1.0, -1.0
    return Targets(signs, pairs=_places(groups, group, best, worst))


def _places(groups: Groups, group: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Pairs [M, 2] as places in P * G, of the groups of M pairs and the places inside them."""
    import torch

    return torch.stack([better, worse], -1) + (group * groups.mask.shape[1]).unsqueeze(-1)


def all_pairs(groups: Groups, settings: AllPairs) -> Targets:
    """Every pair of a group whose rewards differ by more than the margin; the targets are standardised rewards."""
    gap = groups.rewards.unsqueeze(-1) - groups.rewards.unsqueeze(-2)
    both = groups.mask.unsqueeze(-1) & groups.mask.unsqueeze(-2)
    paired = both & (gap > max(settings.margin, EPS))
    if settings.of_best:
        best = groups.rewards.masked_fill(~groups.mask, float("-inf")).max(-1).indices
        paired &= paired.new_zeros(groups.mask.shape).scatter(-1, best.unsqueeze(-1), True).unsqueeze(-1)
    paired = paired.flatten(1)
    if settings.at_most is not None:
        order = gap.flatten(1).masked_fill(~paired, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        paired &= paired.new_zeros(paired.shape).scatter(-1, order[:, : settings.at_most], True)
    group, place = paired.nonzero().unbind(-1)
    size = groups.mask.shape[1]
    found = _places(groups, group, place // size, place % size)
    return Targets(standardise(groups.rewards, groups.mask), pairs=found)


def given_pairs(groups: Groups, _: GivenPairs) -> Targets:
    """Of the answers that were given the best against the worst (f-HAL, arXiv 2602.05946): +1 and -1.

    The targets of what was sampled are its rewards, standardised among themselves.
    """
    given = _of_best_and_worst(groups, groups.mask & ~groups.sampled)
    sampled = groups.mask & groups.sampled
    return Targets(standardise(groups.rewards, sampled).where(sampled, given.completions), pairs=given.pairs)


METHOD = Shape(Pairs, pairs, makes="pairs")
ALL = Shape(AllPairs, all_pairs, makes="pairs")
GIVEN = Shape(GivenPairs, given_pairs, makes="pairs", given=True)
