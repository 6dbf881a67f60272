"""The reward functions one by one: their values by name, and which completions are right by one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gift.methods.groups import Groups
from gift.project.errors import UserError
from gift.project.sections import Section, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class Judged(Section):
    """From which reward on a completion counts as right. The default is for rewards of 0 and 1."""

    correct: str | None = Field(None, description="the reward function that says so; null: the total reward")
    correct_from: float = Field(0.5, description="the least value of a right completion")


def is_correct(groups: Groups, settings: Judged) -> Tensor:
    """Bool [P, G]; a completion to which the reward function gave nothing is not right, nor is one that is masked."""
    values, known = component(groups, settings.correct)
    return known & (values >= settings.correct_from)


def component(groups: Groups, name: str | None) -> tuple[Tensor, Tensor]:
    """What a reward function gave, or the total (None), float [P, G], and where it gave something, bool [P, G]."""
    if name is None:
        return groups.rewards, groups.mask
    if name not in groups.names:
        known = did_you_mean(name, list(groups.names))
        raise UserError(
            f"params.yaml: update: {name!r}: the scores have no reward of that name; {known}"
            " (one of weight 0 needs `in_update: true`)"
        )
    index = groups.names.index(name)
    return groups.components[..., index], groups.known[..., index] & groups.mask
