"""DPO (arXiv 2305.18290) and IPO (2310.12036) on pairs of a group, with an SFT term on the better (RPO, 2405.16436)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.methods.match.ends import ends
from gift.project.sections import Positive, Section


class Dpo(Section):
    """The paper's beta; the anchor of its implicit reward is the reference.

    IPO's paper writes sums over tokens; TRL takes means, which its authors are said to have used.
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    anchor: Anchor = "reference"
    beta: Positive = 0.1
    token_reduce: Literal["sum", "mean"] = "sum"
    sft: Annotated[float, Field(ge=0, description="weight of - mean log-prob of the better's tokens")] = 0.0


def dpo(groups: Groups, targets: Targets, outputs: Outputs, settings: Dpo) -> Loss:
    """Mean over pairs of -log sigmoid(beta h), or of (h - 1 / (2 beta))^2 (ipo), h = l_better - l_worse.

    l is the log-ratio of a completion in nats, summed over its tokens or their mean. `sft` adds its weight times the
    mean over pairs of - mean logprob of the better. A group without a pair adds nothing.
    """
    from torch.nn.functional import logsigmoid

    reduce = groups.mean_tokens if settings.token_reduce == "mean" else groups.sum_tokens
    better, worse = ends(targets, reduce(outputs.logprobs - groups.anchor(settings.anchor)))
    difference = better - worse
    if settings.loss == "ipo":
        loss = (difference - 1 / (2 * settings.beta)).square()
    else:
        loss = -logsigmoid(settings.beta * difference)
    if settings.sft:
        loss = loss - settings.sft * ends(targets, groups.mean_tokens(outputs.logprobs))[0]
    margin = settings.beta * difference.detach()
    accuracy = (margin > 0).to(margin.dtype)
    return Loss(loss.sum() / max(1, groups.step.num_pairs), {"margin": margin, "accuracy": accuracy})


METHOD = Match(
    Dpo,
    dpo,
    metrics=("margin", "accuracy"),
    anchor=lambda settings: settings.anchor,
    takes=("pairs",),
    given=True,  # a pair is one, whoever said it
)
