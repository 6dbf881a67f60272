"""f-GRPO and f-HAL (arXiv 2602.05946): raise what is better, lower what is worse, by the dual of a divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.methods.match.ends import ends
from gift.project.sections import Positive, Section, Share

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 20.0  # of |v|: its exponential is still far from overflow, and no useful policy is so far from its reference

Divergence = Literal["kl", "reverse_kl", "pearson", "hellinger", "jensen_shannon", "total_variation"]


class FGrpo(Section):
    """gamma 0 is the paper's function, 1 the released code's. No source that we could read states beta.

    `set_softmax` are the paper's importance weights as two readers report them. - log pi_old is hundreds of nats for
    real answers, so that they single out the least likely completion of each sign: for study only.
    """

    divergence: Divergence = "pearson"
    beta: Positive = 0.1
    gamma: Annotated[float, Field(ge=0)] = 0.0
    weights: Literal["none", "set_softmax"] = "none"


class FHal(FGrpo):
    """`offline` is the share of the given pairs (lambda); no source that we could read states it."""

    offline: Share = 0.5


def f_grpo(groups: Groups, targets: Targets, outputs: Outputs, settings: FGrpo) -> Loss:
    """Mean over completions of -A w psi(v) / (1 + 1 / beta), psi = g(v) where A > 0, else f*(g(v)).

    v = beta l(reference) + gamma l(old), l the summed log-ratio in nats, held to +-20. w is 1, or (`set_softmax`) the
    softmax of r - log pi_old over those with A > 0, of -r - log pi_old over the others.
    """
    loss, _, stopped = _terms(groups, targets, outputs, settings, groups.mask)
    return Loss(loss.sum() / groups.step.num_completions, {"clip_ratio": stopped})


def f_hal(groups: Groups, targets: Targets, outputs: Outputs, settings: FHal) -> Loss:
    """offline x FDO + (1 - offline) x f-GRPO of what was sampled, the mean over groups of the mean inside each.

    FDO is the mean over pairs of f*(g(v_worse)) - g(v_better), of answers that were given (`shape: given_pairs`).
    """
    sampled = groups.mask & groups.sampled
    loss, (link, conjugate), stopped = _terms(groups, targets, outputs, settings, sampled)
    online = (loss.sum(-1) / sampled.sum(-1).clamp_min(1)).sum() / groups.step.num_groups
    offline = ends(targets, conjugate)[1] - ends(targets, link)[0]
    value = settings.offline * offline.sum() / max(1, groups.step.num_pairs) + (1 - settings.offline) * online
    return Loss(value, {"clip_ratio": stopped, "offline": offline.detach()})


def _terms(
    groups: Groups, targets: Targets, outputs: Outputs, settings: FGrpo, counts: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Of each completion: its term of f-GRPO, 0 outside `counts`; g(v) and f*(g(v)); whether v was held."""
    v = settings.beta * groups.sum_tokens(outputs.logprobs - groups.ref_logprobs)
    if settings.gamma:
        v = v + settings.gamma * groups.sum_tokens(outputs.logprobs - groups.old_logprobs)
    target = targets.completions.to(v.dtype)
    limited = v.clamp(-LARGEST, LARGEST)
    link, conjugate = _dual(limited.where(groups.mask, 0.0), settings.divergence)
    loss = -(target * link.where(target > 0, conjugate)) / (1 + 1 / settings.beta)
    if settings.weights == "set_softmax":
        loss = loss * _weights(groups, target, counts)
    stopped = (v != limited).to(v.dtype).detach().where(groups.mask, float("nan"))
    return loss.where(counts, 0.0), (link, conjugate), stopped


def _weights(groups: Groups, target: Tensor, counts: Tensor) -> Tensor:
    """softmax of +-r - log pi_old over the completions whose target is above 0, and over the others: [P, G]."""
    unlikely = -groups.sum_tokens(groups.old_logprobs)
    above = target > 0

    def softmax(rewards: Tensor, among: Tensor) -> Tensor:
        return (rewards + unlikely).masked_fill(~among, float("-inf")).softmax(-1)

    raised = softmax(groups.rewards, counts & above)
    return raised.where(above, softmax(-groups.rewards, counts & ~above)).nan_to_num()


def _dual(v: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """g(v) and f*(g(v)) of each divergence, in forms that do not overflow."""
    from math import log

    from torch.nn.functional import softplus

    match divergence:
        case "kl":
            return v, (v - 1).exp()
        case "reverse_kl":
            return -(-v).exp(), v - 1
        case "pearson":
            return v, v + v.square() / 4
        case "hellinger":
            return 1 - (-v).exp(), v.exp() - 1
        case "jensen_shannon":
            return log(2) - softplus(-v), softplus(v) - log(2)
        case "total_variation":
            return v.tanh() / 2, v.tanh() / 2


METHOD = Match(
    FGrpo,
    f_grpo,
    metrics=("clip_ratio",),
    coupled=lambda settings: settings.weights != "none",
    anchor=lambda _: "reference",
)
HAL = Match(
    FHal,
    f_hal,
    metrics=("clip_ratio", "offline"),
    anchor=lambda _: "reference",
    takes=("pairs",),
    shapes=("given_pairs",),
    given=True,
)
