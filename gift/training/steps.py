"""Which groups make which optimizer step, on which rank, in which micro-batch: plain arithmetic, same on every rank."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gift.logprobs.batches import Groups, fill, num_tokens, row_batches
from gift.logprobs.settings import Layout
from gift.project.ragged import Ints


def steps_of_groups(groups: Sequence[int], per_step: int, epochs: int, seed: int) -> list[list[int]]:
    """Groups of every optimizer step: each epoch is a seeded shuffle, cut into steps that differ by at most one group.

    The number of steps an epoch is that for which steps come closest to `per_step` groups, at least 1.
    """
    steps = []
    for epoch in range(epochs):
        order = list(groups)
        random.Random(f"{seed} {epoch}").shuffle(order)
        count = max(1, round(len(order) / per_step))
        cuts = [round(index * len(order) / count) for index in range(count + 1)]
        steps += [sorted(order[a:b]) for a, b in pairwise(cuts)]
    return steps


def share_groups(tokens: Sequence[int], world_size: int) -> list[list[int]]:
    """Whole groups for each rank, balanced by tokens: the longest first, each to the rank with the least so far."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += tokens[index]
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class MicroBatches:
    """One rank's forwards of an optimizer step. `whole`: batches of whole groups; `parts`: batches of rows of groups
    that are too large for one batch, which need a first pass without gradient."""

    whole: list[Groups]
    parts: list[list[int]]


def micro_batches(groups: Groups, lengths: Ints, budget: int, layout: Layout) -> MicroBatches:
    """Batches of at most `budget` tokens; every row of the groups occurs once."""
    fits = [num_tokens([group], lengths, layout) <= budget for group in groups]
    whole = [group for group, fit in zip(groups, fits, strict=True) if fit]
    large = [group for group, fit in zip(groups, fits, strict=True) if not fit]
    return MicroBatches(fill(whole, lengths, budget, layout), row_batches(large, lengths, budget, layout))
