"""CISPO (arXiv 2506.13585): REINFORCE with clipped, constant importance weights; every token keeps a gradient."""

from typing import Annotated

from pydantic import Field

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Cispo(Section):
    """Limits of the importance weight itself (not of its distance to 1): ScaleRL's and TRL's recipe."""

    least: Annotated[float, Field(ge=0)] = 0.0
    most: Positive = 5.0


def cispo(groups: Groups, targets: Targets, outputs: Outputs, settings: Cispo) -> Loss:
    """-sum of sg[clamp(rho, least, most)] A logprob over the tokens of the step, rho = exp(logprob - old)."""
    ratio = (outputs.logprobs - groups.old_logprobs).detach().exp()
    weight = ratio.clamp(settings.least, settings.most)
    loss = -(weight * targets.of_tokens(groups) * outputs.logprobs)
    clipped = (weight != ratio).to(ratio.dtype).where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(groups.aggregate(loss, "dapo"), {"clip_ratio": clipped})


METHOD = Match(
    Cispo,
    cispo,
    metrics=("clip_ratio",),
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda _: "dapo",
)
