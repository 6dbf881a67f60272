"""Accuracies: hand numbers, and pass@k against the average over all subsets."""

import itertools
import math

import pytest

from gift.evaluation.estimates import (
    accuracies,
    by_domain,
    evaluation,
    mean_and_error,
    mean_rewards,
    pass_at_k,
    rights_of,
)
from gift.project.errors import UserError


@pytest.mark.parametrize(("num", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (6, 6, 2), (7, 3, 7)])
def test_pass_at_k_is_the_mean_over_all_subsets(num: int, correct: int, k: int) -> None:
    samples = [index < correct for index in range(num)]
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(num, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_k_beyond_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        pass_at_k(3, 1, 4)


def test_mean_and_standard_error_by_hand() -> None:
    assert mean_and_error([0.0, 1.0, 1.0, 0.0]) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_and_error([0.3]) == (0.3, 0.0)


def test_accuracies_by_hand() -> None:
    correct = {
        "a": {0: True, 1: True, 2: False},
        "b": {0: False, 1: False, 2: False},
        "c": {0: True, 2: True},  # sample 1 was not scored: it counts neither for nor against
    }
    numbers = accuracies(correct, k=2)
    assert numbers["eval/accuracy_greedy"] == pytest.approx(2 / 3)
    assert numbers["eval/avg@2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert numbers["eval/pass@2"] == pytest.approx(0.5)  # only prompts with both samples
    assert numbers["eval/accuracy_greedy_se"] == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))


def test_rewards_by_hand() -> None:
    rewards = {"a": {0: 2.0, 1: 1.0, 2: 3.0}, "b": {0: -1.0, 2: 0.5}, "c": {}}
    numbers = mean_rewards(rewards)
    assert numbers["eval/reward_greedy"] == pytest.approx(0.5)
    assert numbers["eval/reward_greedy_se"] == pytest.approx(1.5)
    assert numbers["eval/reward"] == pytest.approx((2 + 0.5) / 2)
    assert mean_rewards({"c": {}}) == {}


def test_domains_share_out_the_prompts_under_safe_names() -> None:
    domains = {"a": "Number Theory", "b": None, "c": "algebra", "d": "Number Theory", "e": "C++/C#"}
    assert by_domain(domains) == {"eval/Number_Theory": {"a", "d"}, "eval/algebra": {"c"}, "eval/C_C_": {"e"}}
    assert accuracies({"a": {0: True}, "d": {0: False}}, 2, "eval/x") == {
        "eval/x/accuracy_greedy": 0.5,
        "eval/x/accuracy_greedy_se": 0.5,
    }


def test_an_evaluation_is_that_of_all_and_of_each_domain() -> None:
    prompt_ids, samples = ["a", "a", "b", "b", "c", "c"], [0, 1, 0, 1, 0, 1]
    rewards, rights = [1.5, 0.5, 0.0, None, 2.0, 1.0], [1.0, 0.0, 0.0, None, 1.0, 1.0]
    domains = {"a": "math", "b": "code", "c": "math", "d": "other"}
    numbers = evaluation(prompt_ids, samples, rewards, rights, domains, 1)
    assert (numbers["eval/accuracy_greedy"], numbers["eval/avg@1"]) == (pytest.approx(2 / 3), 0.5)
    assert (numbers["eval/math/accuracy_greedy"], numbers["eval/math/avg@1"]) == (1.0, 0.5)
    assert (numbers["eval/code/accuracy_greedy"], numbers["eval/code/reward_greedy"]) == (0.0, 0.0)
    assert (numbers["eval/reward"], numbers["eval/math/reward"]) == (0.75, 0.75)
    assert [numbers[f"eval{part}/num_prompts"] for part in ("", "/math", "/code")] == [3, 2, 1]
    assert not [name for name in numbers if "other" in name or name.startswith("eval/code/avg")]
    without = evaluation(prompt_ids, samples, rewards, None, domains, 1)
    assert without == {name: value for name, value in numbers.items() if "reward" in name or "num_prompts" in name}
    with pytest.raises(UserError, match="'answer' gave 0\\.5 for prompt_id=b"):
        rights_of(prompt_ids, {"answer": [1, 0, 0.5, 1, 1, 1]})
