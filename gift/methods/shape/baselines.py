"""Rewards less a baseline, not divided by a spread: centred, leave_one_out, length_baseline, corpo."""

from __future__ import annotations

from pydantic import Field

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import centre
from gift.project.sections import Section


class Centred(Section):
    """No choices."""


def centred(groups: Groups, _: Centred) -> Targets:
    """r_i - mean r (GVPO, arXiv 2504.19599; Dr. GRPO, 2503.20783)."""
    return Targets(centre(groups.rewards, groups.mask))


class LeaveOneOut(Section):
    """No choices."""


def leave_one_out(groups: Groups, _: LeaveOneOut) -> Targets:
    """r_i - mean_{j != i} r_j = n / (n - 1) (r_i - mean r) (RLOO, arXiv 2402.14740); 0 in a group of one."""
    count = groups.mask.sum(-1, keepdim=True)
    return Targets(centre(groups.rewards, groups.mask) * count / (count - 1).clamp_min(1))


class LengthBaseline(Section):
    """No choices."""


def length_baseline(groups: Groups, _: LengthBaseline) -> Targets:
    """r_i - sum_j T_j r_j / sum_j T_j, T the tokens of a completion (OPO, arXiv 2505.23585; verl 0.9's `opo`)."""
    centred = centre(groups.rewards, groups.mask)  # so that equal rewards give 0 to the bit
    lengths = (groups.lengths * groups.mask).to(centred.dtype)
    baseline = (lengths * centred).sum(-1, keepdim=True) / lengths.sum(-1, keepdim=True).clamp_min(1)
    return Targets((centred - baseline).where(groups.mask, 0.0))


class Corpo(Section):
    """The paper's value could not be found; 0.5 is for rewards between 0 and 1, 0 for rewards around 0."""

    correct_from: float = Field(0.5, description="the least reward of a right completion")


def corpo(groups: Groups, settings: Corpo) -> Targets:
    """r_i - max(correct_from, mean r) (CoRPO, arXiv 2511.04439, Eq. 11): what failed never has a target above 0.

    The targets of a group do not add up to 0, and one that failed as a whole is pushed down.
    """
    centred = centre(groups.rewards, groups.mask)
    count = groups.mask.sum(-1, keepdim=True).clamp_min(1)
    mean = groups.rewards.where(groups.mask, 0.0).sum(-1, keepdim=True) / count
    return Targets((centred - (settings.correct_from - mean).clamp_min(0)).where(groups.mask, 0.0))


CENTRED = Shape(Centred, centred)
LEAVE_ONE_OUT = Shape(LeaveOneOut, leave_one_out)
LENGTH_BASELINE = Shape(LengthBaseline, length_baseline)
CORPO = Shape(Corpo, corpo, of_total=False)
