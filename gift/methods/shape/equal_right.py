"""equal_right: a right completion has a target above 0, a wrong one below; how far says the whole reward."""

from __future__ import annotations

from gift.methods.components import Judged, is_correct
from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise


class EqualRight(Judged):
    """No others."""


def equal_right(groups: Groups, settings: EqualRight) -> Targets:
    """+|z_i| of a right completion and -|z_i| of a wrong one, z the standardised reward.

    The mechanism that GDEPO (arXiv 2601.06795) describes: no auxiliary reward gives a right proof a target below 0. Its
    formula could not be found (UNCERTAIN).
    """
    size = standardise(groups.rewards, groups.mask).abs()
    return Targets(size.where(is_correct(groups, settings), -size))


METHOD = Shape(EqualRight, equal_right, of_total=False)
