"""raw: rewards as they are, or their sigmoid (UNA, arXiv 2408.15339, takes targets in [0, 1])."""

from typing import Literal

from gift.methods.groups import Groups, Shape, Targets
from gift.project.sections import Section


class Raw(Section):
    """`sigmoid` is UNA's of a reward model's score."""

    map: Literal["none", "sigmoid"] = "none"


def raw(groups: Groups, settings: Raw) -> Targets:
    rewards = groups.rewards.sigmoid() if settings.map == "sigmoid" else groups.rewards
    return Targets(rewards.where(groups.mask, 0.0))


METHOD = Shape(Raw, raw)
