"""zscore: rewards standardised inside their group (GIFT, arXiv 2510.23868; GRPO, arXiv 2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import EPS, centre, spread
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class Zscore(Section):
    """No choices: n - 1, and 0 where all rewards are equal."""


def standardise(rewards: Tensor, mask: Tensor) -> Tensor:
    """Group-standardised rewards A = (r - mean) / std (Bessel's n - 1), the target of GIFT (arXiv 2510.23868).

    rewards: float [P, G]; mask: bool [P, G], the completions that have a reward. Masked rows give 0, and so does a
    group whose rewards are all equal: it holds no preference.
    """
    centred = centre(rewards, mask)
    deviation = spread(centred, mask)
    return (centred / deviation.clamp_min(EPS)).where(deviation > EPS, 0.0)


def zscore(groups: Groups, _: Zscore) -> Targets:
    return Targets(standardise(groups.rewards, groups.mask))


METHOD = Shape(Zscore, zscore)
