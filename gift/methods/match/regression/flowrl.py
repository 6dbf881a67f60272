"""FlowRL (arXiv 2509.15207): match the policy to exp(beta reward) with a learned log partition function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gift.methods.groups import Groups, Head, Loss, Match, Outputs, Targets
from gift.project.sections import Count, Positive, Section, Share

if TYPE_CHECKING:
    from torch import Tensor, nn


class Flowrl(Section):
    """The paper's numbers. Its three publications weigh a completion differently: by w = pi / pi_old of the whole
    sequence clipped to 1 -+ clip (paper), not clipped (the authors' release), or at most 10 (verl's recipe)."""

    beta: Positive = 15.0
    weighting: Literal["paper", "released_unclipped", "verl_min10"] = "paper"
    clip: Share = 0.2
    layers: Count = 3


def flowrl(groups: Groups, targets: Targets, outputs: Outputs, settings: Flowrl) -> Loss:
    """Mean over completions of w [log Z(x) + mean logprob - beta A - mean reference logprob]^2, means over tokens."""
    if outputs.learned is None:
        raise ValueError("flowrl: the forward gave no log Z")
    log_z, mask = outputs.learned.unsqueeze(-1), groups.mask
    matched = log_z + groups.mean_tokens(outputs.logprobs) - groups.mean_tokens(groups.ref_logprobs)
    residual = matched - settings.beta * targets.completions
    weight = _weight(groups.sum_tokens(outputs.logprobs.detach() - groups.old_logprobs), settings)
    loss = (weight * residual.square()).where(mask, 0.0)
    unknown = float("nan")
    metrics = {"log_z": outputs.learned.detach(), "importance": weight.where(mask, unknown)}
    return Loss(loss.sum() / groups.step.num_completions, metrics)


def _weight(log_ratio: Tensor, settings: Flowrl) -> Tensor:
    if settings.weighting == "paper":
        return log_ratio.exp().clamp(1 - settings.clip, 1 + settings.clip)
    return log_ratio.exp().clamp_max(10.0 if settings.weighting == "verl_min10" else float("inf"))


def head(hidden_size: int, settings: Flowrl, names: tuple[str, ...]) -> nn.Module:
    """The authors' projection from [M, hidden size] to [M], without its dropout: every look must see the same log Z."""
    from torch import nn

    body: list[nn.Module] = []
    for _ in range(settings.layers - 1):
        body += [nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size)]
    return nn.Sequential(*body, nn.Linear(hidden_size, 1), nn.Flatten(0))


METHOD = Match(
    Flowrl,
    flowrl,
    ("log_z", "importance"),
    coupled=False,
    head=Head("prompt_mean", head),
    aggregate=lambda _: "grpo",
    learns_from_zero=True,
)
