"""zscore: rewards standardised inside their group (GIFT, arXiv 2510.23868; GRPO, arXiv 2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import EPS, centre, spread
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class Zscore(Section):
    """n - 1, and 0 where all rewards are equal."""

    eps: Annotated[float, Field(ge=0)] = Field(0.0, description="added to the standard deviation: TRL 1e-4, verl 1e-6")
    std: Literal["group", "step"] = Field(
        "group", description="of the group's rewards, or of all of the optimizer step (TRL's scale_rewards: batch)"
    )


def standardise(rewards: Tensor, mask: Tensor, eps: float = 0.0) -> Tensor:
    """Group-standardised rewards A = (r - mean) / (std + eps) (Bessel's n - 1), the target of GIFT (arXiv 2510.23868).

    rewards: float [P, G]; mask: bool [P, G], the completions that have a reward. Masked rows give 0, and so does a
    group whose rewards are all equal: it holds no preference.
    """
    centred = centre(rewards, mask)
    deviation = spread(centred, mask)
    return (centred / (deviation + eps).clamp_min(EPS)).where(deviation > EPS, 0.0)


def zscore(groups: Groups, settings: Zscore) -> Targets:
    """A = (r - mean) / (std + eps); with the std of a step, which `across` divides by, r - mean."""
    if settings.std == "step":
        return Targets(centre(groups.rewards, groups.mask))
    return Targets(standardise(groups.rewards, groups.mask, settings.eps))


def across(groups: Groups, targets: Targets, settings: Zscore) -> Targets:
    """r - mean of its group over the standard deviation (n - 1) of all rewards of the step, about their one mean."""
    if settings.std == "group":
        return targets
    rewards, mask = groups.rewards.view(1, -1), groups.mask.view(1, -1)
    deviation = spread(centre(rewards, mask), mask)
    scaled = targets.completions / (deviation + settings.eps).clamp_min(EPS)
    return Targets(scaled.where(deviation > EPS, 0.0))


METHOD = Shape(Zscore, zscore, across)
