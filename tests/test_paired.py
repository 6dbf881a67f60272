"""Paired differences on common random numbers, by hand and by their laws."""

import math

import numpy as np
import pytest

from gift.evaluation.paired import paired
from gift.project.errors import UserError

ONE = {("a", 0): 1.0, ("b", 0): 0.0, ("c", 0): 0.0, ("d", 0): 1.0}
OTHER = {("a", 0): 0.0, ("b", 0): 1.0, ("c", 0): 1.0, ("d", 0): 1.0}


def test_by_hand() -> None:
    found = paired(ONE, OTHER, greedy=True)
    assert (found.mean, found.num_prompts) == (0.25, 4)  # -1, 1, 1, 0
    assert found.error == pytest.approx(math.sqrt((1.25**2 + 2 * 0.75**2 + 0.25**2) / 3 / 4))
    assert (found.gained, found.lost) == (("b", "c"), ("a",))
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(0.25)


def test_it_is_antisymmetric_and_zero_against_itself() -> None:
    there, back = paired(ONE, OTHER, greedy=True), paired(OTHER, ONE, greedy=True)
    assert (there.mean, there.error, there.gained) == (-back.mean, back.error, back.lost)
    same = paired(ONE, ONE, greedy=True)
    assert (same.mean, same.error, same.gained, same.lost) == (0.0, 0.0, (), ())


def test_sampled_answers_count_by_prompt_and_greedy_ones_apart() -> None:
    one = ONE | {("a", 1): 1.0, ("a", 2): 0.0, ("b", 1): 0.0}
    other = OTHER | {("a", 1): 1.0, ("a", 2): 1.0, ("b", 1): 1.0, ("c", 1): 1.0}
    found = paired(one, other, greedy=False)
    assert (found.mean, found.num_prompts) == (0.75, 2)
    assert found.gained == ("b", "c")


def test_prompts_without_a_value_under_both_are_left_out() -> None:
    assert paired(ONE, {("b", 0): 1.0, ("z", 0): 1.0}, greedy=True).num_prompts == 1
    assert paired(ONE | {("b", 0): math.nan}, OTHER, greedy=True).num_prompts == 3
    with pytest.raises(UserError, match="evaluated on other prompts"):
        paired(ONE, {("z", 0): 1.0}, greedy=True)


def test_common_random_numbers_make_the_interval_narrower_and_it_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside, widths, apart = 0, [], []
    for _ in range(300):
        hard, noise = rng.random(200), rng.random(200)
        rights = [{(str(i), 0): float(noise[i] < hard[i] * share) for i in range(200)} for share in (0.7, 0.8)]
        found = paired(*rights, greedy=True)
        low, high = found.interval
        inside += low <= 0.05 <= high  # the mean of hard is one half
        widths.append(found.error)
        apart.append(math.sqrt(sum(np.var(list(each.values()), ddof=1) / 200 for each in rights)))
    assert 0.9 <= inside / 300 <= 0.99
    assert np.mean(widths) < np.mean(apart) / 2
