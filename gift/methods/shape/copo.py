"""copo: a mix of the target in its group and that of its prompt among others (arXiv 2508.04138)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre, spread
from gift.project.sections import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

COPO_EPS = 1e-6  # the authors'


class Copo(Section):
    """The defaults are what the authors' run_copo.sh ran; other scripts of theirs have k 20 and b 0.5."""

    mode: Literal["soft_with_zero", "only_soft"] = Field(
        "soft_with_zero", description="whether completions of reward 0 get the target of their prompt alone"
    )
    k: Positive = Field(5.0, description="how steep the weight is")
    b: float = Field(1.0, description="bits at which both weigh the same")


def within(groups: Groups, _: Copo) -> Targets:
    """The standardised reward: what the mix takes from the group."""
    return Targets(standardise(groups.rewards, groups.mask))


def across(groups: Groups, targets: Targets, settings: Copo) -> Targets:
    """A = w A_group + (1 - w) A_prompt, w = sigmoid(k (H - b)); soft_with_zero: w = 0 where the reward is 0.

    H: entropy, in bits, of the final answers of the group. A_prompt: the group's mean reward, less the mean of those
    of the step's prompts, over their standard deviation (n - 1) + 1e-6; the same for all of a group.
    """
    count = groups.mask.sum(-1).clamp_min(1)
    mean = groups.rewards.where(groups.mask, 0.0).sum(-1) / count
    prompts = (groups.mask.any(-1)).unsqueeze(0)
    centred = centre(mean.unsqueeze(0), prompts)
    of_prompt = (centred / (spread(centred, prompts) + COPO_EPS)).view(-1, 1)
    weight = (settings.k * (entropy(groups.answers, groups.mask).to(mean.dtype) - settings.b)).sigmoid()
    if settings.mode == "soft_with_zero":
        weight = weight * (groups.rewards != 0)
    return Targets((weight * targets.completions + (1 - weight) * of_prompt).where(groups.mask, 0.0))


def entropy(answers: Tensor, mask: Tensor) -> Tensor:
    """Bits, [P, 1], of the answers of a group; no answer (-1) is one of them."""
    same = (answers.unsqueeze(-1) == answers.unsqueeze(-2)) & mask.unsqueeze(-2)
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    bits = -(same.sum(-1).clamp_min(1) / count).log2()
    return bits.where(mask, 0.0).sum(-1, keepdim=True) / count


METHOD = Shape(Copo, within, across, of_total=False, learns_from_zero=True, least_groups=2, needs=("answers",))
