"""A factor for each group: disco (its domain and its difficulty) and focal (its difficulty)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from gift.methods.components import Judged, is_correct
from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

Rarity = Literal["log", "log_squared", "inverse"]
DISCO_EPS = 1e-5  # the authors'


class Disco(Judged):
    """The defaults are what the authors' script ran."""

    domain: Rarity = Field("log", description="ln(1 + 1/p), its square, or 1/p of the domain's share p of the prompts")
    difficulty: Rarity | Literal["none"] = Field("inverse", description="the same of the group's share that is right")


def disco(groups: Groups, settings: Disco) -> Targets:
    """w(p) v(q) (r_i - mean r) (DISCO, arXiv 2505.15074): rare domains and hard prompts weigh more.

    p: share of the prompt's domain among those of the round (1 is the weight of a prompt without one); q: share of the
    group that is right, plus 1e-5. Not divided by a spread, which would take the factors away again.
    """
    known = Counter(domain for domain in groups.domains if domain is not None)
    shares = [1.0 if domain is None else known[domain] / len(groups.domains) for domain in groups.domains]
    share = groups.rewards.new_tensor(shares).unsqueeze(-1)
    here = groups.rewards.new_tensor([domain is not None for domain in groups.domains]).unsqueeze(-1)
    factor = rarity(share, settings.domain).where(here > 0, 1.0)
    if settings.difficulty != "none":
        count = groups.mask.sum(-1, keepdim=True).clamp_min(1)
        right = is_correct(groups, settings).sum(-1, keepdim=True) / count
        factor = factor * rarity(right + DISCO_EPS, settings.difficulty)
    return Targets(factor * centre(groups.rewards, groups.mask))


def rarity(share: Tensor, how: Rarity) -> Tensor:
    if how == "inverse":
        return 1 / share
    weight = (1 / share).log1p()
    return weight.square() if how == "log_squared" else weight


class Focal(Section):
    """The defaults of verl's open pull request 5334."""

    gamma: Annotated[float, Field(ge=0)] = 1.0
    wrong: float = Field(0.0, description="the reward of a wrong completion")
    right: float = Field(1.0, description="the reward of a right one")

    @model_validator(mode="after")
    def right_is_more(self) -> Focal:
        if self.right <= self.wrong:
            raise ValueError(f"right: {self.right:g}: must be more than wrong ({self.wrong:g})")
        return self


def focal(groups: Groups, settings: Focal) -> Targets:
    """(1 - p)^gamma x the standardised reward, p = (mean r - wrong) / (right - wrong) within [0, 1].

    F-GRPO (arXiv 2602.06717), which is not f-GRPO: a prompt that is often solved weighs less.
    """
    count = groups.mask.sum(-1, keepdim=True).clamp_min(1)
    mean = groups.rewards.where(groups.mask, 0.0).sum(-1, keepdim=True) / count
    solved = ((mean - settings.wrong) / (settings.right - settings.wrong)).clamp(0, 1)
    return Targets((1 - solved) ** settings.gamma * standardise(groups.rewards, groups.mask))


DISCO = Shape(Disco, disco, of_total=False, needs=("domains",))
FOCAL = Shape(Focal, focal, of_total=False)
