"""The clipped policy gradient of GRPO, DAPO, Dr. GRPO (ratios of tokens) and GSPO (ratios of sequences)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section, Share


class Clipped(Section):
    """The clip is to [1 - clip_low, 1 + clip_high]; what a step's losses are divided by is named after its method."""

    level: Literal["token", "sequence"] = "token"
    clip_low: Share = 0.2
    clip_high: Positive = 0.2
    clip_dual: Positive | None = Field(
        None,
        description="the largest ratio that still counts where the target is negative (verl's clip_ratio_c, "
        "TRL's delta); null: any",
    )
    aggregate: Aggregate = "grpo"

    @model_validator(mode="after")
    def dual_clip_is_outside(self) -> Clipped:
        if self.clip_dual is not None and self.clip_dual <= 1 + self.clip_high:
            raise ValueError(f"clip_dual: {self.clip_dual:g}: must be more than 1 + clip_high ({1 + self.clip_high:g})")
        return self


def clipped(groups: Groups, targets: Targets, outputs: Outputs, settings: Clipped) -> Loss:
    """-min(rho A, clip(rho) A) a token, summed as `aggregate` says (`Groups.aggregate`).

    rho = exp(logprob - old), or of its mean over a completion (arXiv 2507.18071).
    """
    log_ratio = outputs.logprobs - groups.old_logprobs
    if settings.level == "sequence":
        log_ratio = groups.to_tokens(groups.mean_tokens(log_ratio))
    ratio, target = log_ratio.exp(), targets.of_tokens(groups)
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss = -(ratio.clamp_max(settings.clip_dual or float("inf")) * target).minimum(limited * target)
    flat = (limited * target < ratio * target).to(loss.dtype)
    known = flat.where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(groups.aggregate(loss, settings.aggregate), {"clip_ratio": known})


METHOD = Match(
    Clipped,
    clipped,
    metrics=("clip_ratio",),
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda settings: settings.aggregate,
)
