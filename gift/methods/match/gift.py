"""GIFT (arXiv 2510.23868): match the standardised implicit reward to the standardised explicit reward."""

from collections.abc import Callable

import torch
from torch import Tensor

from gift.methods import statistics as groups
from gift.methods.groups import GroupBatch
from gift.methods.settings import GiftObjective

Loss = tuple[Tensor, dict[str, Tensor]]


def gift(batch: GroupBatch, settings: GiftObjective) -> Loss:
    """Sum over groups of mean_i (A_i - beta z_i)^2, and each group's statistics ([P] tensors, detached).

    The implicit reward of a completion is its log-ratio l_i = sum_t (logprob - anchor logprob), in nats (or its mean
    over tokens); z_i = (l_i - mean l) / sqrt(var l + spread_floor^2), with n - 1. A_i is the advantage: the
    explicit reward standardised in the same way, or what else `update.advantages` makes of it.
    `anchor: reference, stats: full` is the paper's function: log Z(x) and beta cancel exactly as the floor goes to 0.
    `anchor: old, stats: detached` is the author's released code, where mean and spread are constants of the gradient.
    The floor makes the first step, where every l_i is 0, finite: the gradient there is -(2 beta / (n floor)) A_i.
    """
    anchor = batch.ref_logprobs if settings.anchor == "reference" else batch.old_logprobs
    log_ratio = batch.sum_tokens(batch.logprobs - anchor)
    if settings.token_reduce == "mean":
        log_ratio = log_ratio / batch.lengths().clamp_min(1)
    mask = batch.mask
    statistics = log_ratio.detach() if settings.stats == "detached" else log_ratio
    deviation = groups.centre(statistics, mask)
    scale = groups.spread(deviation, mask, settings.spread_floor)
    mean = statistics - deviation
    implicit = torch.where(mask, (log_ratio - mean) / scale, torch.zeros_like(log_ratio))
    target = batch.advantages.to(log_ratio.dtype)
    count = mask.sum(-1).clamp_min(1)
    loss = ((target - settings.beta * implicit).square() * mask).sum(-1) / count
    with torch.no_grad():
        statistics_of_groups = _group_statistics(batch, log_ratio.detach(), target)
    return loss.sum(), {"loss": loss.detach(), **statistics_of_groups}


def _group_statistics(batch: GroupBatch, log_ratio: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What drifts: mean and spread of the log-ratio, its correlation with the advantage, beta(x) = std r / std l."""
    mask = batch.mask
    count = mask.sum(-1).clamp_min(1)
    deviation = groups.centre(log_ratio, mask)
    log_ratio_std = groups.spread(deviation, mask).squeeze(-1)
    reward_std = groups.spread(groups.centre(batch.rewards.to(log_ratio.dtype), mask), mask).squeeze(-1)
    covariance = (target * deviation).sum(-1) / (count - 1).clamp_min(1)
    target_std = groups.spread(groups.centre(target, mask), mask).squeeze(-1)
    nan = torch.full_like(log_ratio_std, torch.nan)
    moved = log_ratio_std > 1e-4
    return {
        "log_ratio": (log_ratio * mask).sum(-1) / count,
        "log_ratio_std": log_ratio_std,
        "correlation": torch.where(
            moved & (target_std > 0), covariance / (log_ratio_std * target_std).clamp_min(1e-12), nan
        ),
        "implied_beta": torch.where(moved & (reward_std > 0), reward_std / log_ratio_std.clamp_min(1e-12), nan),
    }


OBJECTIVES: dict[str, Callable[[GroupBatch, GiftObjective], Loss]] = {"gift": gift}
