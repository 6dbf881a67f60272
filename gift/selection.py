"""Select: which completions and groups train. Pure functions of tensors [P, G] (prompts, group)."""

from torch import Tensor

from gift import groups
from gift.advantages import EPS


def enough_rewards(mask: Tensor) -> Tensor:
    """Groups with at least two scored completions, bool [P]; fewer cannot be compared with anything."""
    return mask.sum(-1) >= 2


def has_reward_spread(rewards: Tensor, mask: Tensor) -> Tensor:
    """Groups whose rewards are not all equal, bool [P]."""
    return groups.spread(groups.centre(rewards, mask), mask).squeeze(-1) > EPS
