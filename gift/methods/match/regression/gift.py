"""GIFT (arXiv 2510.23868): match the standardised implicit reward to the standardised explicit reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.methods.statistics import centre, spread
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor


class Gift(Section):
    """The choices inside the GIFT loss (docs/objectives.md)."""

    anchor: Anchor = "old"
    stats: Literal["detached", "full"] = "detached"
    spread_floor: Positive = Field(1.0, description="least spread of the log-ratio inside a group, in nats")
    beta: Positive = 1.0
    token_reduce: Literal["sum", "mean"] = "sum"


def gift(groups: Groups, targets: Targets, outputs: Outputs, settings: Gift) -> Loss:
    """Sum over groups of mean_i (A_i - beta z_i)^2, over the groups of the step.

    The implicit reward of a completion is its log-ratio l_i = sum_t (logprob - anchor logprob), in nats (or its mean
    over tokens); z_i = (l_i - mean l) / sqrt(var l + spread_floor^2), with n - 1. A_i is the target: the explicit
    reward standardised in the same way, or what else `update.shape` makes of it.
    `anchor: reference, stats: full` is the paper's function: log Z(x) and beta cancel exactly as the floor goes to 0.
    `anchor: old, stats: detached` is the author's released code, where mean and spread are constants of the gradient.
    The floor makes the first step, where every l_i is 0, finite: the gradient there is -(2 beta / (n floor)) A_i.
    """
    reduce = groups.mean_tokens if settings.token_reduce == "mean" else groups.sum_tokens
    log_ratio = reduce(outputs.logprobs - groups.anchor(settings.anchor))
    mask = groups.mask
    statistics = log_ratio.detach() if settings.stats == "detached" else log_ratio
    deviation = centre(statistics, mask)
    scale = spread(deviation, mask, settings.spread_floor)
    mean = statistics - deviation
    implicit = ((log_ratio - mean) / scale).where(mask, 0.0)
    target = targets.completions.to(log_ratio.dtype)
    count = mask.sum(-1).clamp_min(1)
    loss = ((target - settings.beta * implicit).square() * mask).sum(-1) / count
    # The division is in double, so that the parts of a step add up to one number however it is cut.
    return Loss(loss.sum().double() / groups.step.num_groups, _fit(groups, target, log_ratio.detach()))


def _fit(groups: Groups, target: Tensor, log_ratio: Tensor) -> Mapping[str, Tensor]:
    """Of each group, nan where it has not moved: correlation of log-ratio and target, and beta(x) = std r / std l."""
    mask = groups.mask
    deviation = centre(log_ratio, mask)
    moved_by = spread(deviation, mask).squeeze(-1)
    reward_std = spread(centre(groups.rewards.to(log_ratio.dtype), mask), mask).squeeze(-1)
    target_std = spread(centre(target, mask), mask).squeeze(-1)
    covariance = (target * deviation).sum(-1) / (mask.sum(-1) - 1).clamp_min(1)
    correlation = covariance / (moved_by * target_std).clamp_min(1e-12)
    implied_beta = reward_std / moved_by.clamp_min(1e-12)
    moved, unknown = moved_by > 1e-4, float("nan")
    return {
        "correlation": correlation.where(moved & (target_std > 0), unknown),
        "implied_beta": implied_beta.where(moved & (reward_std > 0), unknown),
    }


METHOD = Match(Gift, gift, metrics=("correlation", "implied_beta"), anchor=lambda settings: settings.anchor)
