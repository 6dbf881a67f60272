"""The learning rate of every optimizer step: a linear warm-up, then constant, or a decay that goes on across rounds."""

import math

from gift.project.errors import UserError
from gift.training.settings import Update


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
