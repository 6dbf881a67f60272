"""DPPO (arXiv 2602.04879): no clip of the ratio, but no gradient of a token whose probability has moved too far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor


class Dppo(Section):
    """verl's threshold, and the limit of the ratio that it recommends; its configuration gives 3."""

    divergence: Literal["tv", "kl"] = "tv"
    low: Positive = 0.2
    high: Positive = 0.2
    most: Positive = 20.0
    aggregate: Aggregate = "dapo"


def dppo(groups: Groups, targets: Targets, outputs: Outputs, settings: Dppo) -> Loss:
    """-sg[min(rho, most) keep] A logprob a token, rho = exp(logprob - old).

    keep is 0 where the divergence between the token's two probabilities (it against all others) is beyond `high` and
    A > 0 would raise it further, or beyond `low` and A <= 0 would lower it further.
    """
    target, logprobs = targets.of_tokens(groups), outputs.logprobs.detach()
    up, down = _moved(logprobs, groups.old_logprobs, settings.divergence)
    keep = (up <= settings.high).where(target > 0, down <= settings.low)
    weight = (logprobs - groups.old_logprobs).exp().clamp_max(settings.most) * keep
    stopped = (~keep).to(weight.dtype).where(groups.to_tokens(groups.mask), float("nan"))
    loss = groups.aggregate(-weight * target * outputs.logprobs, settings.aggregate)
    return Loss(loss, {"clip_ratio": stopped})


def _moved(new: Tensor, old: Tensor, divergence: Literal["tv", "kl"]) -> tuple[Tensor, Tensor]:
    """How far each probability has risen, and has fallen; a fall is no rise."""
    risen = new.exp() - old.exp()
    if divergence == "tv":
        return risen, -risen
    # 1e-8 is verl's: a probability of 1 leaves nothing to the others.
    others = (1 - old.exp()) * ((1 - old.exp() + 1e-8) / (1 - new.exp() + 1e-8)).log()
    kl = old.exp() * (old - new) + others
    return kl.where(risen > 0, 0.0), kl.where(risen < 0, 0.0)


METHOD = Match(
    Dppo,
    dppo,
    metrics=("clip_ratio",),
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda settings: settings.aggregate,
)
