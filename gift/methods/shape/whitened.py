"""whitened: returns of tokens, whitened over all tokens of the step (REINFORCE++, arXiv 2501.03262)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import centre
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

WHITENING_EPS = 1e-8  # verl's, inside of the root


class Whitened(Section):
    """What verl 0.9 calls reinforce_plus_plus and, with a baseline, reinforce_plus_plus_baseline."""

    baseline: Literal["none", "group"] = Field("none", description="what is taken off a reward: the mean of its group")
    kl_to_go: Annotated[float, Field(ge=0)] = Field(
        0.0, description="this x (old - reference log-prob), from a token to the end, is taken off its return"
    )

    @model_validator(mode="after")
    def baseline_is_of_whole_completions(self) -> Whitened:
        if self.kl_to_go and self.baseline == "group":
            raise ValueError(
                f"kl_to_go: {self.kl_to_go:g}: with baseline: group the KL of a whole completion belongs in its "
                "reward, before the mean is taken off; set update.kl_in_reward instead"
            )
        return self


def within(groups: Groups, settings: Whitened) -> Targets:
    """The return of each token: the reward (less the mean of its group), less what KL there is from it to the end."""
    rewards = groups.rewards.where(groups.mask, 0.0)
    values = centre(rewards, groups.mask) if settings.baseline == "group" else rewards
    tokens = groups.to_tokens(values)
    if settings.kl_to_go:
        tokens = tokens - settings.kl_to_go * to_go(groups, groups.old_logprobs - groups.ref_logprobs)
    return Targets(values, tokens)


def to_go(groups: Groups, values: Tensor) -> Tensor:
    """Sums of a value of tokens, each from a token to the end of its completion: [N]."""
    exact = values.double()
    before = exact.cumsum(0) - exact  # over all completions
    lengths = groups.lengths.flatten()[groups.order]
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return (groups.to_tokens(groups.sum_tokens(exact)) - (before - before[first])).to(values.dtype)


def across(groups: Groups, targets: Targets, _: Whitened) -> Targets:
    """(return - mean) / sqrt(var + 1e-8), n - 1, over the tokens of the step: a long completion counts more.

    The target of a completion is the mean of those of its tokens.
    """
    mask = groups.to_tokens(groups.mask).unsqueeze(0)
    values = targets.of_tokens(groups).unsqueeze(0)
    centred = centre(values, mask)
    variance = centred.square().sum() / (mask.sum() - 1).clamp_min(1)
    tokens = (centred * (variance + WHITENING_EPS).rsqrt()).squeeze(0)
    return Targets(groups.mean_tokens(tokens).where(groups.mask, 0.0), tokens)


METHOD = Shape(Whitened, within, across, makes="tokens", learns_from_zero=True)
