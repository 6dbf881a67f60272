"""VESPO (arXiv 2602.10693): REINFORCE, each completion weighted by a smooth function of its whole ratio."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

LEAST, MOST = log(1e-8), 20.0  # of a log-ratio, as the authors' code and TRL's


class Vespo(Section):
    """The paper's and TRL's numbers."""

    k_positive: Positive = 2.0
    lambda_positive: Positive = 3.0
    k_negative: Positive = 3.0
    lambda_negative: Positive = 2.0
    sampler: Literal["none", "truncate", "mask"] = Field(
        "none", description="also weigh by exp(old - rollout) of each token; beyond sampler_most the limit, or 0"
    )
    sampler_most: Positive = 3.0


def vespo(groups: Groups, targets: Targets, outputs: Outputs, settings: Vespo) -> Loss:
    """-sg[phi(W)] A logprob, the mean over the tokens of the step; phi(W) = exp(lambda) W^k exp(-lambda W).

    W = exp(sum of logprob - old) of the whole completion; with `sampler` also of old - rollout. phi(1) = 1, and phi
    falls to 0 on both sides. k and lambda are those of the sign of A; 0 counts as positive.
    """
    target = targets.of_tokens(groups)
    log_ratio = groups.to_tokens(_log_ratio(groups, outputs.logprobs.detach(), settings))
    positive = target >= 0
    k = target.new_full((), settings.k_positive).where(positive, settings.k_negative)
    scale = target.new_full((), settings.lambda_positive).where(positive, settings.lambda_negative)
    phi = (scale + k * log_ratio - scale * log_ratio.exp()).exp()
    known = phi.where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(groups.aggregate(-phi * target * outputs.logprobs, "dapo"), {"importance": known})


def _log_ratio(groups: Groups, logprobs: Tensor, settings: Vespo) -> Tensor:
    """log W of each completion, held as TRL does: [P, G]."""
    moved = groups.sum_tokens((logprobs - groups.old_logprobs).clamp(-MOST, MOST))
    if settings.sampler != "none":
        if groups.rollout_logprobs is None:
            raise ValueError("update.match: vespo: the sampler's log-probs were not read")
        weight = (groups.old_logprobs - groups.rollout_logprobs).exp()
        limited = weight.clamp_max(settings.sampler_most)
        if settings.sampler == "mask":
            limited = weight.masked_fill(weight != limited, 0.0)
        moved = moved + groups.sum_tokens(limited.log().clamp(LEAST, MOST))
    return moved.clamp(LEAST, MOST)


METHOD = Match(
    Vespo,
    vespo,
    metrics=("importance",),
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda _: "dapo",
    needs=lambda settings: () if settings.sampler == "none" else ("rollout_logprobs",),
)
