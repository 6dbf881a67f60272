"""The clipped policy gradient of GRPO, DAPO, Dr. GRPO (ratios of tokens) and GSPO (ratios of sequences)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section, Share

if TYPE_CHECKING:
    from torch import Tensor


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
    aggregate: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_correction: bool = Field(False, description="multiply the KL term by the ratio (TRL's use_bias_correction_kl)")

    @model_validator(mode="after")
    def dual_clip_is_outside(self) -> Clipped:
        if self.clip_dual is not None and self.clip_dual <= 1 + self.clip_high:
            raise ValueError(f"clip_dual: {self.clip_dual:g}: must be more than 1 + clip_high ({1 + self.clip_high:g})")
        return self


def clipped(groups: Groups, targets: Targets, outputs: Outputs, settings: Clipped) -> Loss:
    """-min(rho A, clip(rho) A) a token, + kl_coef x KL to the reference; summed as `aggregate` says.

    rho = exp(logprob - old), or of its mean over a completion (arXiv 2507.18071). grpo (2402.03300): the mean over
    completions of their means over tokens. dr_grpo (2503.20783): the sum over (completions x the longest that one may
    be). dapo (2503.14476): the mean over the tokens of the step.
    """
    log_ratio = outputs.logprobs - groups.old_logprobs
    if settings.level == "sequence":
        log_ratio = groups.to_tokens(groups.mean_tokens(log_ratio))
    ratio, target = log_ratio.exp(), targets.of_tokens(groups)
    limited = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss = -(ratio.clamp_max(settings.clip_dual or float("inf")) * target).minimum(limited * target)
    if settings.kl_coef:
        kl = _kl(groups.ref_logprobs - outputs.logprobs, settings)
        loss = loss + settings.kl_coef * (kl * ratio if settings.kl_correction else kl)
    trains = groups.to_tokens(groups.mask)
    loss = loss.where(trains, 0.0)
    step = groups.step
    if settings.aggregate == "grpo":
        value = groups.mean_tokens(loss).sum() / step.num_completions
    elif settings.aggregate == "dr_grpo":
        value = loss.sum() / (step.num_completions * step.max_tokens)
    else:
        value = loss.sum() / step.num_tokens
    flat = (limited * target < ratio * target).to(loss.dtype)
    return Loss(value, {"clip_ratio": flat.where(trains, float("nan"))})


def _kl(log_ratio: Tensor, settings: Clipped) -> Tensor:
    """Estimates of KL(policy | reference) from reference - policy log-probs (Schulman's k1, k2, k3)."""
    if settings.kl == "k1":
        return -log_ratio
    return log_ratio.square() / 2 if settings.kl == "k2" else log_ratio.exp() - log_ratio - 1


METHOD = Match(Clipped, clipped, metrics=("clip_ratio",), coupled=False)
