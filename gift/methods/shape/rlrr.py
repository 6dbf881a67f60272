"""rlrr: relative rewards, made of the ranks inside a group: right ones first, then short ones (arXiv 2601.23058)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gift.methods.components import Judged, is_correct
from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import centre
from gift.project.sections import Count

if TYPE_CHECKING:
    from torch import Tensor


class Rlrr(Judged):
    """Defaults of the paper's appendix A.1, as an implementation that cites it has them (SECONDARY)."""

    score: Literal["hrr", "prr"] = Field("hrr", description="hybrid (right or wrong, and a little of the rank) or pure")
    tau: Annotated[float, Field(ge=0)] = Field(0.1, description="hrr: how much the rank counts")
    length_bin: Count = Field(2048, description="tokens; right completions of one bin are equally short")
    band: Annotated[float, Field(ge=0)] = Field(
        1.0e-3, description="the target of a right completion is at least minus this, of a wrong one at most this"
    )


def rlrr(groups: Groups, settings: Rlrr) -> Targets:
    """A = s - mean s, held to the side of 0 on which the completion belongs, give or take `band`.

    R is the dense rank, 1 the best, R_max the worst of the group. hrr: s = 1[right] + tau tanh(R_max / R - 1). prr:
    s = (R_max - R) / (R_max - 1), 0 where all are of one rank. Where s is divided by its spread (an option of theirs,
    off by default) tau would mean nothing in a group in which all are right.
    """
    correct = is_correct(groups, settings)
    rank = ranks(groups, correct, settings.length_bin).to(groups.rewards.dtype)
    worst = rank.where(groups.mask, 1.0).max(-1, keepdim=True).values
    if settings.score == "hrr":
        scores = correct + settings.tau * (worst / rank - 1).tanh()
    else:
        scores = (worst - rank) / (worst - 1).clamp_min(1)
    made = centre(scores, groups.mask)
    held = made.clamp_min(-settings.band).where(correct, made.clamp_max(settings.band))
    return Targets(held.where(groups.mask, 0.0))


def ranks(groups: Groups, correct: Tensor, length_bin: int) -> Tensor:
    """Dense ranks, int64 [P, G]: right before wrong; of the right ones the shorter bin; then the larger reward."""
    bins = (groups.lengths // length_bin).where(correct, 0)
    equal = groups.mask.new_ones(*groups.mask.shape, groups.mask.shape[-1])
    better = ~equal
    for key in (correct.long(), -bins, groups.rewards):  # the larger is better
        one, other = key.unsqueeze(-1), key.unsqueeze(-2)  # [P, i, 1] against [P, 1, j]
        better = better | (equal & (other > one))
        equal = equal & (other == one)
    there = groups.mask.unsqueeze(-2)
    first = ~(equal & there).tril(-1).any(-1)  # of equal ones the first counts
    return 1 + (better & there & first.unsqueeze(-2)).sum(-1)


METHOD = Shape(Rlrr, rlrr, of_total=False)
