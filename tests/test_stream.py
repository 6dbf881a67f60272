"""The prompt stream: every epoch holds every prompt, rounds never hold one twice, and the position is all there is."""

import random

import pytest

from gift.methods.sample.epochs import take_prompts
from gift.project.errors import UserError
from gift.project.seeds import seed_of

IDS = [f"p{index}" for index in range(10)]


def test_an_epoch_of_rounds_that_fit_holds_every_prompt_once() -> None:
    position, seen = 0, []
    for _ in range(5):
        taken, position = take_prompts(IDS, position, 2, seed=3)
        seen += taken
    assert position == 10
    assert sorted(seen) == sorted(IDS)
    again, _ = take_prompts(IDS, 10, 10, seed=3)
    assert sorted(again) == sorted(IDS)
    assert again != seen  # the next epoch is another permutation


def test_a_round_never_holds_a_prompt_twice_even_across_epochs() -> None:
    rng = random.Random(0)
    for _ in range(300):
        size = rng.randint(1, 12)
        ids = IDS[:size] + [f"q{index}" for index in range(max(0, size - 10))]
        start, count, seed = rng.randint(0, 40), rng.randint(1, size), rng.randint(0, 5)
        taken, position = take_prompts(ids, start, count, seed)
        assert len(taken) == len(set(taken)) == count
        assert position - start >= count
        # The stream is a function of the position: two steps of any size are one.
        half, middle = take_prompts(ids, start, (count + 1) // 2, seed)
        assert taken[: len(half)] == half
        assert middle <= position


def test_seed_and_epoch_change_the_order() -> None:
    orders = {tuple(take_prompts(IDS, start, 10, seed)[0]) for start in (0, 10, 20) for seed in (0, 1)}
    assert len(orders) == 6


def test_more_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="prompts_per_round: 11: there are only 10"):
        take_prompts(IDS, 0, 11, 0)


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert seed_of("generate", 0, 1, "a", 2) == seed_of("generate", 0, 1, "a", 2)
    parts = [
        ("generate", 0, 1, "a", 2),
        ("evaluate", 0, 1, "a", 2),
        ("generate", 1, 1, "a", 2),
        ("generate", 0, 1, "a", 3),
    ]
    assert len({seed_of(*each) for each in parts}) == 4
    assert seed_of("a", 11) != seed_of("a1", 1)
    assert 0 <= seed_of("x") < 2**63
