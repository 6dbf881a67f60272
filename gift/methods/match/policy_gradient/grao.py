"""GRAO (arXiv 2508.07750): explore by what was sampled, imitate an answer that was given, and align the two."""

from typing import Annotated

from pydantic import Field

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Section


class Grao(Section):
    """The paper's numbers: beta of the imitation, and lambda of the alignment."""

    beta: Annotated[float, Field(ge=0)] = 0.5
    alignment: Annotated[float, Field(ge=0)] = 0.6


def grao(groups: Groups, targets: Targets, outputs: Outputs, settings: Grao) -> Loss:
    """-(mean_i A_i E_i + beta A_y I + alignment mean_i A_i (E_i - I)), the mean over groups.

    E_i is the mean logprob of the tokens of a sampled completion, I that of the given answer y (`shape: with_given`).
    A group without one has I = 0; of several, the sums count.
    """
    means, target = groups.mean_tokens(outputs.logprobs), targets.completions
    sampled, given = groups.mask & groups.sampled, groups.mask & ~groups.sampled
    count = sampled.sum(-1).clamp_min(1)
    exploration = (target * means).where(sampled, 0.0).sum(-1) / count
    imitation = (target * means).where(given, 0.0).sum(-1)
    imitated = means.where(given, 0.0).sum(-1) * target.where(sampled, 0.0).sum(-1) / count
    objective = (1 + settings.alignment) * exploration + settings.beta * imitation - settings.alignment * imitated
    return Loss(-objective.sum() / groups.step.num_groups, {})


METHOD = Match(Grao, grao, aggregate=lambda _: "grpo", given=True)
