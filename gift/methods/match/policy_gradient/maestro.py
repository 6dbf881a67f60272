"""MAESTRO (arXiv 2601.07208): a learned conductor chooses for each completion which reward function counts most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gift.methods.groups import Groups, Head, Loss, Match, Outputs, Targets
from gift.methods.match.policy_gradient.clipped import Clipped, clipped
from gift.methods.shape.zscore import standardise
from gift.project.sections import Positive, Section, Share

if TYPE_CHECKING:
    from torch import Tensor, nn


class Maestro(Section):
    """The paper's tau and weight of the entropy could not be found: these are ours, as is `spread`."""

    tau: Positive = Field(1.0, description="temperature of the conductor")
    entropy: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the conductor's entropy")
    spread: Share = Field(
        0.1, description="of the weight, what all reward functions share; the chosen one has the rest"
    )
    clip_low: Share = 0.2
    clip_high: Positive = 0.2


def maestro(groups: Groups, _: Targets, outputs: Outputs, settings: Maestro) -> Loss:
    """GRPO's clipped loss on A, less the mean over completions of A log pi(a) + entropy x H(pi).

    pi = softmax(logits / tau) over the reward functions that gave a value, a ~ pi by the completion's own draw. A is
    the standardised sum_k w_k(a) weight_k reward_k of each completion, a constant for policy and conductor.
    """
    if outputs.learned is None:
        raise ValueError("maestro: the forward gave no logits of reward functions")
    known = groups.known & groups.mask.unsqueeze(-1)
    logits = (outputs.learned / settings.tau).masked_fill(~known, -1e9)  # an infinite one would have no gradient
    logprobs = logits.log_softmax(-1)
    action = drawn(logprobs.detach().exp(), groups.draws)
    rewards = weights(action, known.to(logits.dtype), settings.spread) * groups.weights * groups.components
    target = standardise(rewards.where(known, 0.0).sum(-1), groups.mask)
    policy = clipped(
        groups, Targets(target), outputs, Clipped(clip_low=settings.clip_low, clip_high=settings.clip_high)
    )
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    score = target * logprobs.gather(-1, action.unsqueeze(-1)).squeeze(-1) + settings.entropy * entropy
    conductor = -score.where(groups.mask, 0.0)
    shown = entropy.detach().where(groups.mask, float("nan"))
    value = policy.value + conductor.sum() / groups.step.num_completions
    return Loss(value, {**policy.metrics, "choice_entropy": shown})


def drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The reward function [P, G] in whose part of [0, 1) a completion's draw [P, G] falls; parts are [P, G, K]."""
    below = (probabilities.cumsum(-1) <= draws.unsqueeze(-1)).sum(-1)
    # Rounding may leave the sum of all below a draw: then it is the last that has a part.
    return below.minimum(probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1))


def weights(action: Tensor, known: Tensor, spread: float) -> Tensor:
    """What each reward function weighs, [P, G, K]: `spread` in equal parts over the known ones (1), the rest on one."""
    from torch.nn.functional import one_hot

    equal = known / known.sum(-1, keepdim=True).clamp_min(1)
    return (1 - spread) * one_hot(action, known.shape[-1]).to(known.dtype) + spread * equal


def head(hidden_size: int, _: Maestro, names: tuple[str, ...]) -> nn.Module:
    """A linear function for each reward function, under its name: from [M, hidden size] to [M, K]."""
    import torch
    from torch import nn

    class Conductor(nn.ModuleDict):
        def forward(self, states: Tensor) -> Tensor:
            return torch.cat([linear(states) for linear in self.values()], -1)

    return Conductor({f"of_{name}": nn.Linear(hidden_size, 1) for name in names})


METHOD = Match(
    Maestro,
    maestro,
    ("clip_ratio", "choice_entropy"),
    head=Head("last_token", head, detached=True),
    aggregate=lambda _: "grpo",
    learns_from_zero=True,
    makes_targets=True,
    least_rewards=2,
    needs=("draws",),
)
