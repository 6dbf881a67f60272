"""The learning rate is the one formula of the optimizer step, whatever rounds it is cut into."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import get_scheduler

from gift.project.errors import UserError
from gift.training.settings import Update
from gift.training.steps import check_schedule, learning_rate


def settings(**more: object) -> Update:
    return Update.model_validate({"groups_per_step": 2, "dtype": "float32", "lr": 0.8, **more})


def rates(update: Update, steps: range) -> list[float]:
    return [learning_rate(step, update) for step in steps]


def test_hand_numbers() -> None:
    assert rates(settings(), range(1, 4)) == [0.8, 0.8, 0.8]
    assert rates(settings(warmup_steps=4), range(1, 7)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    linear = settings(warmup_steps=2, lr_schedule="linear", schedule_steps=6)
    assert rates(linear, range(1, 10)) == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0, 0, 0])
    floor = settings(lr_schedule="linear", schedule_steps=4, min_lr_ratio=0.5)
    assert rates(floor, range(1, 7)) == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.4])
    cosine = settings(lr_schedule="cosine", schedule_steps=4, min_lr_ratio=0.25)
    half = (1 + math.cos(math.pi / 4)) / 2
    expected = [0.8, 0.2 + 0.6 * half, 0.5, 0.2 + 0.6 * (1 - half), 0.2, 0.2]
    assert rates(cosine, range(1, 7)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        ({"lr_schedule": "linear"}, "linear", None),
        ({"lr_schedule": "cosine"}, "cosine", None),
        ({"lr_schedule": "cosine", "min_lr_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ],
)
def test_after_the_warm_up_it_is_transformers_schedule(ours: dict, theirs: str, more: dict | None) -> None:
    """In the warm-up ours is one step ahead: transformers' first step has a rate of 0."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = get_scheduler(theirs, optimizer, 5, 30, scheduler_specific_kwargs=more)
    found = []
    for _ in range(30):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    update = settings(warmup_steps=5, schedule_steps=30, **ours)
    assert rates(update, range(6, 31)) == pytest.approx(found[5:])
    assert rates(update, range(1, 6)) == pytest.approx(found[1:6])
    assert rates(update, range(31, 40)) == pytest.approx([0.8 * update.min_lr_ratio] * 9)


def test_it_falls_without_a_jump_and_never_below_its_floor() -> None:
    for schedule in ("linear", "cosine"):
        update = settings(warmup_steps=10, lr_schedule=schedule, schedule_steps=1000, min_lr_ratio=0.2)
        found = rates(update, range(10, 1200))
        assert all(0 <= a - b < 0.8 * math.pi / 990 for a, b in pairwise(found))
        assert min(found) == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lr_schedule": "cosine"}, "schedule_steps: missing; lr_schedule: cosine needs the number of optimizer steps"),
        ({"lr_schedule": "linear", "schedule_steps": 8, "warmup_steps": 8}, "must be more than warmup_steps"),
        ({"schedule_steps": 8}, "constant has no schedule_steps"),
        ({"min_lr_ratio": 0.1}, "constant has no schedule_steps"),
    ],
)
def test_a_schedule_without_an_end_is_refused(more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**more)


def test_what_is_said_of_steps_beyond_the_schedule() -> None:
    update = settings(lr_schedule="linear", schedule_steps=20)
    assert check_schedule(0, 20, update) is None
    assert check_schedule(5, 1000, settings()) is None
    assert check_schedule(15, 8, update) == (
        "optimizer steps 21 to 23 lie beyond update.schedule_steps = 20: learning rate 0"
    )
    with pytest.raises(UserError, match="steps 21 to 28, whose learning rate would be 0: raise it"):
        check_schedule(20, 8, update)
    kept = settings(lr_schedule="linear", schedule_steps=20, min_lr_ratio=0.5)
    assert check_schedule(20, 8, kept) == (
        "optimizer steps 21 to 28 lie beyond update.schedule_steps = 20: learning rate 0.4"
    )
