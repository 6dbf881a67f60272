"""The clipped policy gradient of GRPO, DAPO, Dr. GRPO (ratios of tokens), GSPO, LUSPO and TRL's RLOO (of sequences)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section, Share

if TYPE_CHECKING:
    from torch import Tensor


class Clipped(Section):
    """The clip is to [1 - clip_low, 1 + clip_high]; what a step's losses are divided by is named after its method."""

    level: Literal["token", "sequence", "sequence_sum"] = "token"
    clip_low: Share = 0.2
    clip_high: Positive = 0.2
    clip_dual: Positive | None = Field(
        None,
        description="the largest ratio that still counts where the target is negative (verl's clip_ratio_c, "
        "TRL's delta); null: any",
    )
    aggregate: Aggregate = "grpo"
    log_ratio_most: Positive | None = Field(
        None, description="log-ratios are cut off above this (verl: 20; 10 at level sequence); null: nowhere"
    )

    @model_validator(mode="after")
    def dual_clip_is_outside(self) -> Clipped:
        if self.clip_dual is not None and self.clip_dual <= 1 + self.clip_high:
            raise ValueError(f"clip_dual: {self.clip_dual:g}: must be more than 1 + clip_high ({1 + self.clip_high:g})")
        return self


def clipped(groups: Groups, targets: Targets, outputs: Outputs, settings: Clipped) -> Loss:
    """-min(rho A, clip(rho) A) a token, summed as `aggregate` says (`Groups.aggregate`)."""
    loss, flat = of_tokens(groups, targets, outputs, settings)
    known = flat.where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(groups.aggregate(loss, settings.aggregate), {"clip_ratio": known})


def of_tokens(groups: Groups, targets: Targets, outputs: Outputs, settings: Clipped) -> tuple[Tensor, Tensor]:
    """The loss of each token [N], and 1 for those that the clip leaves without a gradient.

    rho = exp(logprob - old), or of its mean over a completion (level sequence, arXiv 2507.18071), or its sum
    (sequence_sum, TRL's RLOO).
    """
    log_ratio = outputs.logprobs - groups.old_logprobs
    if settings.level != "token":
        reduce = groups.mean_tokens if settings.level == "sequence" else groups.sum_tokens
        log_ratio = groups.to_tokens(reduce(log_ratio))
    if settings.log_ratio_most is not None:
        log_ratio = log_ratio.clamp_max(settings.log_ratio_most)
    ratio, target = log_ratio.exp(), targets.of_tokens(groups)
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss = -(ratio.clamp_max(settings.clip_dual or float("inf")) * target).minimum(limited * target)
    return loss, (limited * target < ratio * target).to(loss.dtype)


METHOD = Match(
    Clipped,
    clipped,
    metrics=("clip_ratio",),
    coupled=False,
    takes=lambda settings: ("completions", "tokens") if settings.level == "token" else ("completions",),
    aggregate=lambda settings: settings.aggregate,
)
