"""centred: rewards less their group's mean, not divided by a spread (GVPO, arXiv 2504.19599; Dr. GRPO, 2503.20783)."""

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import centre
from gift.project.sections import Section


class Centred(Section):
    """No choices."""


def centred(groups: Groups, _: Centred) -> Targets:
    return Targets(centre(groups.rewards, groups.mask))


METHOD = Shape(Centred, centred)
