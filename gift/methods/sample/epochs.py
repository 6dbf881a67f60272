"""The order in which rounds consume prompts: an endless stream of epochs, each a seeded permutation."""

import random
from collections.abc import Sequence

from gift.project.errors import UserError
from gift.project.seeds import seed_of


def take_prompts(prompt_ids: Sequence[str], start: int, count: int, seed: int) -> tuple[list[str], int]:
    """The `count` distinct prompts that stand at `start` in the stream, and the position after them.

    Every epoch is a permutation seeded by (seed, epoch). Where a round crosses into the next epoch, a prompt that it
    holds already is passed over, so that a round never has one prompt twice.
    """
    size = len(prompt_ids)
    if problem := supply_problem(count, size):
        raise UserError(problem)
    taken: dict[str, None] = {}
    position = start
    epoch, order = -1, list(prompt_ids)
    while len(taken) < count:
        if position // size != epoch:
            epoch = position // size
            order = list(prompt_ids)
            random.Random(seed_of("epoch", seed, epoch)).shuffle(order)
        taken.setdefault(order[position % size])
        position += 1
    return list(taken), position


def supply_problem(count: int, size: int, sample: str | None = None) -> str | None:
    """Why a round, or the way to sample it, cannot take `count` prompts from `size`."""
    if count <= size:
        return None
    if sample:
        key = f"generate.sample.{sample}"
        return f"params.yaml: {key}: takes {count} prompts, but there are only {size}; lower its numbers"
    return (
        f"params.yaml: generate.prompts_per_round: {count}: there are only {size} training prompts; lower it, or raise "
        "prepare.num_train"
    )
