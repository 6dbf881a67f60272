"""DRO as verl has it, named after Direct Reward Optimisation (arXiv 2405.19107): a quadratic pull, and no clip."""

from __future__ import annotations

from pydantic import Field

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Dro(Section):
    """verl's aggregation; its `dro_beta` has no default and must be positive, so that ours is required."""

    beta: Positive = Field(description="how strongly a token is pulled back to its old log-prob, such as 0.05")
    aggregate: Aggregate = "dapo"


def dro(groups: Groups, targets: Targets, outputs: Outputs, settings: Dro) -> Loss:
    """-(A logprob - beta/2 (logprob - old)^2) a token, summed as `aggregate` says.

    Its gradient is beta (logprob - old) - A: a token is at rest where its log-ratio is A / beta.
    """
    pull = settings.beta / 2 * (outputs.logprobs - groups.old_logprobs).square()
    return Loss(groups.aggregate(pull - targets.of_tokens(groups) * outputs.logprobs, settings.aggregate), {})


METHOD = Match(
    Dro,
    dro,
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda settings: settings.aggregate,
)
