"""off_policy: what is below the mean of its group and no longer likely does not train (DeepSeek-V3.2's mask)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gift.methods.groups import Groups, Select
from gift.methods.statistics import EPS, centre
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class OffPolicy(Section):
    """How far the sampler may be from the policy that the round starts from."""

    threshold: Annotated[float, Field(ge=0, description="nats a token, of sampler - old log-prob")]


def off_policy(groups: Groups, settings: OffPolicy) -> Tensor:
    """All but what has a reward below the mean of its group and mean_t (rollout_t - old_t) > threshold.

    TRL's off_policy_mask_threshold takes the current policy's log-probs, inside of the loss, so that drift of the
    optimizer steps counts too; and it takes the loss away, while the others keep their targets and their divisor.
    """
    if groups.rollout_logprobs is None:
        raise ValueError("update.select: off_policy: the sampler's log-probs were not read")
    gap = groups.mean_tokens(groups.rollout_logprobs - groups.old_logprobs)
    below = centre(groups.rewards, groups.mask) < -EPS
    return groups.mask & ~(groups.sampled & below & (gap > settings.threshold))


METHOD = Select(OffPolicy, off_policy, needs=("rollout_logprobs",))
