"""gdpo: each reward function standardised by itself, their weighted sum whitened over the step (arXiv 2601.05242)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre, spread
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

WHITENING_EPS = 1e-4  # TRL's and the authors'


class Gdpo(Section):
    """No choices."""


def within(groups: Groups, _: Gdpo) -> Targets:
    """sum_k weight_k x the standardised component k, so that one with a small spread is not drowned by another.

    Of a single component that is the standardised total.
    """
    if groups.components.shape[-1] == 1:
        return Targets(standardise(groups.rewards, groups.mask))
    known = groups.known & groups.mask.unsqueeze(-1)
    each: Tensor = standardise(groups.components.movedim(-1, 0), known.movedim(-1, 0))
    return Targets((groups.weights.view(-1, 1, 1) * each).sum(0))


def across(groups: Groups, targets: Targets, _: Gdpo) -> Targets:
    """The sums, less their mean, over their standard deviation (n - 1) over the completions of the step.

    With several components their size would else depend on how many agree.
    """
    if groups.components.shape[-1] == 1:
        return targets
    centred = centre(targets.completions.view(1, -1), groups.mask.view(1, -1))
    scale = spread(centred, groups.mask.view(1, -1)) + WHITENING_EPS
    return Targets((centred / scale).view(groups.mask.shape))


METHOD = Shape(Gdpo, within, across, of_total=False)
