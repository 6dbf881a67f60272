"""Groups made of what is known of them; what is not said is unknown."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from gift.methods.groups import Groups, Step

if TYPE_CHECKING:
    from torch import Tensor


def groups_of(rewards: Tensor, mask: Tensor, lengths: Tensor, max_tokens: int, **fields: Any) -> Groups:
    """Groups with all their completions in order; of what is not in `fields` nothing is known.

    rewards: float [P, G], the only component unless `fields` say otherwise; mask, lengths: as in `Groups`.
    """
    unknown: dict[str, Any] = {
        "sampled": mask.new_ones(mask.shape),
        "components": rewards.unsqueeze(-1),
        "known": mask.unsqueeze(-1),
        "weights": rewards.new_ones(1),
        "names": ("reward",),
        "truncated": mask.new_zeros(mask.shape),
        "answers": lengths.new_full(mask.shape, -1),
        "domains": (None,) * len(mask),
        "solved": rewards.new_full((len(mask),), float("nan")),
        "draws": rewards.new_full(mask.shape, float("nan")),
        "rollout_logprobs": None,
        "token_weights": None,
    }
    order = lengths.new_ones(mask.numel()).cumsum(0) - 1
    step = Step(len(mask), int(mask.sum()), int((lengths * mask).sum()), max_tokens)
    return Groups(mask=mask, rewards=rewards, lengths=lengths, **(unknown | {"order": order, "step": step} | fields))


def number_answers(answers: Sequence[Hashable | None], size: int) -> Tensor:
    """int64 [P, G]: equal answers of a group share a number, counted from 0; -1 is none."""
    import torch

    numbers = []
    for first in range(0, len(answers), size):
        known: dict[Hashable, int] = {}
        for each in answers[first : first + size]:
            numbers.append(-1 if each is None else known.setdefault(each, len(known)))
    return torch.tensor(numbers).view(-1, size)
