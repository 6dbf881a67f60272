"""Methods that are not offered, written against the interface of the others to show that it holds them.

Between them they use what no offered method does: pairs, settings that follow a step's metrics, targets of tokens, and
an answer that was given instead of sampled. tests/test_methods.py puts them through the laws of every method.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gift.methods.groups import Groups, Loss, Match, Outputs, Shape, Targets
from gift.methods.match.policy_gradient.clipped import Clipped, clipped
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre, spread
from gift.project.sections import Section


class AllPairs(Section):
    """The least difference of rewards that makes a pair."""

    margin: float = 0.1


def all_pairs(groups: Groups, settings: AllPairs) -> Targets:
    """Standardised rewards, and every pair of a group whose rewards differ by more than the margin."""
    gap = groups.rewards.unsqueeze(-1) - groups.rewards.unsqueeze(-2)
    both = groups.mask.unsqueeze(-1) & groups.mask.unsqueeze(-2)
    group, better, worse = (both & (gap > settings.margin)).nonzero().T
    size = groups.mask.shape[1]
    pairs = torch.stack([group * size + better, group * size + worse], -1)
    return Targets(standardise(groups.rewards, groups.mask), pairs=pairs)


class Amir(Section):
    """The defaults of the authors' code (arXiv 2601.03661)."""

    weight: float = 0.01
    beta: float = 0.2


def amir(groups: Groups, targets: Targets, outputs: Outputs, settings: Amir) -> Loss:
    """GRPO's loss + weight x mean over pairs of -log sigmoid(beta (q_better - q_worse)), q the mean log-prob."""
    ratio, target = (outputs.logprobs - groups.old_logprobs).exp(), targets.of_tokens(groups)
    surrogate = groups.mean_tokens(-(ratio * target).minimum(ratio.clamp(0.8, 1.2) * target)).where(groups.mask, 0.0)
    assert targets.pairs is not None
    better, worse = groups.mean_tokens(outputs.logprobs).flatten()[targets.pairs].T
    preference = -logsigmoid(settings.beta * (better - worse))
    step = groups.step
    value = surrogate.sum() / step.num_completions + settings.weight * preference.sum() / max(1, step.num_pairs)
    known = surrogate.detach().where(groups.mask, float("nan"))
    return Loss(value, {"surrogate": known, "preference": preference.detach()})


def follow(settings: Amir, metrics: Mapping[str, float | None]) -> Amir:
    """Keep the second term between 0.3 and 0.7 of the first."""
    surrogate, preference = metrics["surrogate"], metrics["preference"]
    if surrogate is None or preference is None:
        return settings
    share = settings.weight * preference / max(1e-9, surrogate)
    factor = 1.25 if share < 0.3 else 0.8 if share > 0.7 else 1.0
    return settings.model_copy(update={"weight": min(0.05, max(0.005, settings.weight * factor))})


class Weighted(Section):
    """No choices."""


def weighted(groups: Groups, _: Weighted) -> Targets:
    """OAR (arXiv 2601.07408): the standardised reward times the weight of each token."""
    targets = standardise(groups.rewards, groups.mask)
    assert groups.token_weights is not None
    return Targets(targets, tokens=groups.to_tokens(targets) * groups.token_weights)


class Given(Section):
    """No choices."""


def with_given(groups: Groups, _: Given) -> Targets:
    """GRAO's advantages (n, not n - 1): of the sampled among themselves, of the given answer among all of its group."""

    def scaled(mask: Tensor) -> Tensor:
        centred = centre(groups.rewards, mask)
        count = mask.sum(-1, keepdim=True)
        return centred / (spread(centred, mask) * ((count - 1) / count).sqrt()).clamp_min(1e-6)

    sampled = groups.mask & groups.sampled
    return Targets(scaled(sampled).where(sampled, scaled(groups.mask)).where(groups.mask, 0.0))


class Grao(Section):
    """The paper's numbers (arXiv 2508.07750)."""

    beta: float = 0.5
    alignment: float = 0.6


def grao(groups: Groups, targets: Targets, outputs: Outputs, settings: Grao) -> Loss:
    """-(mean_i A_i E_i + beta A_y I + alignment mean_i A_i (E_i - I)), E and I token means; mean over groups."""
    means = groups.mean_tokens(outputs.logprobs)
    sampled, given = groups.mask & groups.sampled, groups.mask & ~groups.sampled
    count = sampled.sum(-1).clamp_min(1)
    target = targets.completions
    exploration = (target * means).where(sampled, 0.0).sum(-1) / count
    imitated = means.where(given, 0.0).sum(-1)
    imitation = (target * means).where(given, 0.0).sum(-1)
    alignment = exploration - target.where(sampled, 0.0).sum(-1) / count * imitated
    objective = exploration + settings.beta * imitation + settings.alignment * alignment
    return Loss(-objective.sum() / groups.step.num_groups, {})


SHAPES = {
    "all_pairs": Shape(AllPairs, all_pairs, makes="pairs"),
    "weighted": Shape(Weighted, weighted, makes="tokens"),
    "with_given": Shape(Given, with_given),
}
MATCHES = {
    "amir": Match(Amir, amir, ("surrogate", "preference"), adapt=follow, takes=("pairs",)),
    "oar": Match(Clipped, clipped, ("clip_ratio",), coupled=False, takes=("tokens",)),
    "grao": Match(Grao, grao),
}
