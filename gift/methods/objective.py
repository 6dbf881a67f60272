"""What any loss may be joined with: a KL term to the reference, and the correction of what the sampler drew from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor


class Kl(Section):
    """A term coef x KL(policy | reference), an estimate for each token (Schulman's k1, k2, k3) of what was sampled.

    k3 under `ratio: token` has the gradient of the KL itself, and is TRL's default; its own ratio is that of a
    sequence under GSPO.
    """

    coef: Positive
    estimator: Literal["k1", "k2", "k3"] = "k3"
    ratio: Literal["none", "token", "sequence"] = Field(
        "none", description="multiply it by exp(logprob - old): TRL's use_bias_correction_kl"
    )
    aggregate: Aggregate | None = Field(None, description="how it is summed; null: as the loss is")


class Correction(Section):
    """Weights exp(old - rollout) of the gradient: the sampler's numbers are not the trainer's. As by default in TRL."""

    level: Literal["token", "sequence"] = "sequence"
    outside: Literal["mask", "truncate"] = Field("mask", description="of a weight beyond the limits: 0, or the limit")
    least: Annotated[float, Field(ge=0)] = 0.0
    most: Positive = 3.0

    @model_validator(mode="after")
    def limits_hold_1(self) -> Correction:
        if not self.least < 1 < self.most:
            raise ValueError(
                f"least {self.least:g}, most {self.most:g}: 1, the weight of equal numbers, must be between"
            )
        return self


@dataclass(frozen=True)
class Objective:
    """A loss with what it is joined with; the parts of it still add up to that of a step."""

    match: Match[Any]
    kl: Kl | None = None
    correction: Correction | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.match.metrics, *(("correction_cut",) if self.correction else ()))

    def loss(self, groups: Groups, targets: Targets, outputs: Outputs, settings: Any) -> Loss:
        """The loss of `match` under its settings, the gradient of each log-prob weighted, plus the KL term."""
        metrics: Mapping[str, Tensor] = {}
        weighted = outputs
        if self.correction:
            weights, cut = _weights(groups, self.correction)
            metrics = {"correction_cut": cut}
            # The value stays what it is, so that losses of coupled groups are corrected like any other.
            fixed = outputs.logprobs.detach()
            weighted = Outputs(fixed + weights * (outputs.logprobs - fixed), outputs.learned)
        loss = self.match.loss(groups, targets, weighted, settings)
        value = loss.value
        if self.kl:
            how = self.kl.aggregate or self.match.aggregate(settings)
            kl = _kl(groups, outputs.logprobs, self.kl).where(groups.to_tokens(groups.sampled), 0.0)
            value = value + self.kl.coef * groups.aggregate(kl, how)
        return Loss(value, {**loss.metrics, **metrics})


def _weights(groups: Groups, settings: Correction) -> tuple[Tensor, Tensor]:
    """The weight of each token, [N], and where it was beyond the limits (of completions at level sequence).

    No sampler drew a given answer, so that there is nothing to correct: its weight is 1.
    """
    if groups.rollout_logprobs is None:
        raise ValueError("update.correction: the sampler's log-probs were not read")
    log_ratio = (groups.old_logprobs - groups.rollout_logprobs).where(groups.to_tokens(groups.sampled), 0.0)
    trains = groups.to_tokens(groups.mask & groups.sampled)
    if settings.level == "sequence":
        log_ratio, trains = groups.sum_tokens(log_ratio), groups.mask & groups.sampled
    ratio = log_ratio.exp()
    limited = ratio.clamp(settings.least, settings.most)
    cut = ratio != limited
    weight = limited if settings.outside == "truncate" else ratio.masked_fill(cut, 0.0)
    known = cut.to(ratio.dtype).where(trains, float("nan"))
    return (groups.to_tokens(weight) if settings.level == "sequence" else weight), known


def _kl(groups: Groups, logprobs: Tensor, settings: Kl) -> Tensor:
    """Estimates of KL(policy | reference) of each token: [N]."""
    log_ratio = groups.ref_logprobs - logprobs
    match settings.estimator:
        case "k1":
            kl = -log_ratio
        case "k2":
            kl = log_ratio.square() / 2
        case "k3":
            kl = log_ratio.exp() - log_ratio - 1
    if settings.ratio == "none":
        return kl
    moved = logprobs - groups.old_logprobs
    return kl * (groups.to_tokens(groups.mean_tokens(moved)) if settings.ratio == "sequence" else moved).exp()
