"""f-GRPO (arXiv 2602.05946): raise what is better than its group, lower the rest, by the dual of a divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 20.0  # of |v|: its exponential is still far from overflow, and no useful policy is so far from its reference

Divergence = Literal["kl", "reverse_kl", "pearson", "hellinger", "jensen_shannon", "total_variation"]


class FGrpo(Section):
    """gamma 0 is the paper's function, 1 the released code's. No source that we could read states beta."""

    divergence: Divergence = "pearson"
    beta: Positive = 0.1
    gamma: Annotated[float, Field(ge=0)] = 0.0


def f_grpo(groups: Groups, targets: Targets, outputs: Outputs, settings: FGrpo) -> Loss:
    """Mean over completions of -A psi(v) / (1 + 1 / beta), psi = g(v) where A > 0, else f*(g(v)).

    v = beta l(reference) + gamma l(old), l the summed log-ratio in nats, held to +-20. The paper's importance weights
    are left at 1: their form is not certain, and on long answers they would single out one completion.
    """
    drift = groups.sum_tokens(outputs.logprobs - groups.ref_logprobs)
    v = settings.beta * drift
    if settings.gamma:
        v = v + settings.gamma * groups.sum_tokens(outputs.logprobs - groups.old_logprobs)
    target = targets.completions.to(v.dtype)
    limited = v.clamp(-LARGEST, LARGEST)
    link, conjugate = _dual(limited.where(groups.mask, 0.0), settings.divergence)
    loss = -(target * link.where(target > 0, conjugate)) / (1 + 1 / settings.beta)
    stopped = (v != limited).to(v.dtype).detach()
    value = loss.where(groups.mask, 0.0).sum() / groups.step.num_completions
    return Loss(value, {"clip_ratio": stopped.where(groups.mask, float("nan"))})


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


METHOD = Match(FGrpo, f_grpo, ("clip_ratio",), coupled=False, anchor=lambda _: "reference")
