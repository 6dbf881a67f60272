"""Select: which completions and groups train. Pure functions of tensors [P, G] (prompts, group)."""

from torch import Tensor

from gift.methods.before import Rewards, group_advantages
from gift.methods.settings import Advantages
from gift.methods.shape.zscore import EPS


def enough_rewards(mask: Tensor) -> Tensor:
    """Groups with at least two scored completions, bool [P]; fewer cannot be compared with anything."""
    return mask.sum(-1) >= 2


def has_preference(rewards: Rewards, kind: Advantages) -> Tensor:
    """Groups some of whose completions are worth more than others, bool [P]; in the others all rewards are equal."""
    return (group_advantages(rewards, kind).abs() > EPS).any(-1)
