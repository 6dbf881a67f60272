"""What training still uses of the interface before `Groups`; it goes when the trainer has moved over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gift.methods import statistics as groups
from gift.methods.settings import Advantages, GiftObjective
from gift.methods.shape.zscore import standardise

WHITENING_EPS = 1e-4  # TRL's and the authors' of GDPO


@dataclass(frozen=True)
class GroupBatch:
    """P groups of G completions with N completion tokens in total (flat, completion after completion).

    logprobs, ref_logprobs, old_logprobs: float [N], nats, of each sampled token under the current policy, the
    reference, and the policy the round started from. completion: int64 [N], which completion (0 .. P*G-1, groups in
    order) a token belongs to. rewards: float [P, G]. advantages: float [P, G], the targets that
    `gift.methods.shape.zscore` makes of the rewards. mask: bool [P, G], completions that train (scored ones).
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    old_logprobs: Tensor
    completion: Tensor
    rewards: Tensor
    advantages: Tensor
    mask: Tensor

    def lengths(self) -> Tensor:
        """Tokens of each completion, float [P, G]."""
        return self.sum_tokens(self.logprobs.new_ones(len(self.logprobs)))

    def sum_tokens(self, values: Tensor) -> Tensor:
        """Sum of a per-token value over each completion: [N] to [P, G]."""
        flat = values.new_zeros(self.rewards.numel())
        return flat.index_add(0, self.completion, values).view(self.rewards.shape)


@dataclass(frozen=True)
class Rewards:
    """The explicit rewards of P groups of G completions.

    total: float [P, G]; mask: bool [P, G], completions that have a total. components: float [P, G, K], one of each
    reward function, 0 where its gate is shut; known: bool [P, G, K], where the function gave a value and the completion
    has a total; weights: float [K].
    """

    total: Tensor
    mask: Tensor
    components: Tensor
    known: Tensor
    weights: Tensor

    def decoupled(self, kind: Advantages) -> bool:
        """Whether each component is standardised by itself; of a single one that is the total's own."""
        return kind == "gdpo" and self.components.shape[-1] > 1

    def take(self, chosen: list[int]) -> "Rewards":
        """Some of the groups."""
        return Rewards(self.total[chosen], self.mask[chosen], self.components[chosen], self.known[chosen], self.weights)


def single(total: Tensor, mask: Tensor) -> Rewards:
    """The rewards of one function of weight 1."""
    return Rewards(total, mask, total.unsqueeze(-1), mask.unsqueeze(-1), torch.ones(1))


def group_advantages(rewards: Rewards, kind: Advantages) -> Tensor:
    """What each completion is worth inside its group, [P, G]; all zeros where the group holds no preference.

    group: the standardised total. gdpo (arXiv 2601.05242): sum_k weight_k x the standardised component k, so that a
    component with a small spread is not drowned by one with a large spread. With one component the two are one.
    """
    if not rewards.decoupled(kind):
        return standardise(rewards.total, rewards.mask)
    each = standardise(rewards.components.movedim(-1, 0), rewards.known.movedim(-1, 0))
    return torch.einsum("k,kpg->pg", rewards.weights, each)


def step_advantages(rewards: Rewards, kind: Advantages) -> Tensor:
    """The targets of the groups of one optimizer step, [P, G].

    gdpo divides its sums by their standard deviation (n - 1) over the completions of the step, after taking the mean
    away: with several components their size would else depend on how many agree.
    """
    advantages = group_advantages(rewards, kind)
    if not rewards.decoupled(kind):
        return advantages
    flat, mask = advantages.reshape(1, -1), rewards.mask.reshape(1, -1)
    centred = groups.centre(flat, mask)
    return (centred / (groups.spread(centred, mask) + WHITENING_EPS)).view(advantages.shape)


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
