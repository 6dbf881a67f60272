"""Which groups make which optimizer step, on which rank, in which micro-batch: plain arithmetic, same on every rank."""

import random
from collections.abc import Sequence
from itertools import pairwise

from gift.batches import token_budget_batches


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


def micro_batches(lengths: Sequence[Sequence[int]], budget: int) -> tuple[list[list[list[int]]], int]:
    """For each rank the micro-batches of its rows, and the number that every rank must run (the largest of all)."""
    batches = [token_budget_batches(rows, budget) for rows in lengths]
    return batches, max(map(len, batches))
