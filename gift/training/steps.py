"""The optimizer steps of a round: their groups, the share and micro-batches of each rank, and their learning rates."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gift.logprobs.batches import Groups, fill, num_tokens, row_batches
from gift.logprobs.settings import Layout
from gift.project.errors import UserError
from gift.project.ragged import Ints
from gift.training.settings import Update


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


def learning_rate(step: int, settings: Update) -> float:
    """The rate of optimizer step `step`, counted from 1 over all rounds since the base.

    Warm-up: lr * step / warmup_steps. After it the decays of transformers' `get_scheduler` ("linear",
    "cosine_with_min_lr") over the steps up to `schedule_steps`: the first of them has the full lr; from the first step
    after `schedule_steps` on it is lr * min_lr_ratio.
    """
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.lr_schedule == "constant" or settings.schedule_steps is None:
        return settings.lr
    done = min(1.0, (step - 1 - settings.warmup_steps) / (settings.schedule_steps - settings.warmup_steps))
    left = 1 - done if settings.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)


def schedule_problem(first_step: int, num_steps: int, settings: Update) -> str | None:
    """Why a round is refused that could only run at the rate 0."""
    end = settings.schedule_steps
    if end is None or first_step < end or settings.min_lr_ratio:
        return None
    return (
        f"params.yaml: update.schedule_steps: {end}: this round has the optimizer steps {first_step + 1} to "
        f"{first_step + num_steps}, whose learning rate would be 0: raise it, or set update.min_lr_ratio"
    )


def warmup_problem(settings: Update, num_steps: int) -> str | None:
    """What to say of a warm-up that fills more than half of all steps of a chain of rounds."""
    if settings.warmup_steps <= num_steps / 2:
        return None
    never = f", and the learning rate never reaches {settings.lr:g}" if settings.warmup_steps >= num_steps else ""
    return (
        f"params.yaml: update.warmup_steps: {settings.warmup_steps}: the chain of rounds has {num_steps} optimizer "
        f"steps, most of them warm-up{never}; lower it"
    )


def check_schedule(first_step: int, num_steps: int, settings: Update) -> str | None:
    """What to say of a round whose steps run past `schedule_steps`, where it is not refused."""
    if problem := schedule_problem(first_step, num_steps, settings):
        raise UserError(problem)
    last, end = first_step + num_steps, settings.schedule_steps
    if end is None or last <= end:
        return None
    return (
        f"optimizer steps {max(first_step, end) + 1} to {last} lie beyond update.schedule_steps = {end}: learning rate "
        f"{settings.lr * settings.min_lr_ratio:g}"
    )
