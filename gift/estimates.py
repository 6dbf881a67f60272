"""Held-out accuracy and its standard errors, from which answers were right."""

import math
from collections.abc import Sequence

import numpy as np

from gift.tables.prompts import safe_name


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, without bias from num_samples >= k (arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be from 1 to {num_samples}, not {k}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (n - 1); the error of a single value is not known and given as 0."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)


def accuracies(correct: dict[str, dict[int, bool]], k: int, prefix: str = "eval") -> dict[str, float]:
    """`eval/accuracy_greedy`, `eval/avg@k` and `eval/pass@k`, each with its standard error over prompts.

    correct: for each prompt, whether sample s is right (0 is the greedy one, 1 .. k the sampled ones). Answers whose
    reward failed are absent; they count in no mean, and a mean of none is left out.
    """
    greedy = [float(samples[0]) for samples in correct.values() if 0 in samples]
    sampled = [[right for sample, right in samples.items() if sample > 0] for samples in correct.values()]
    averages = [sum(rights) / len(rights) for rights in sampled if rights]
    whole = [rights for rights in sampled if len(rights) == k]
    passes = [pass_at_k(k, sum(rights), k) for rights in whole]
    numbers = {}
    for name, values in {"accuracy_greedy": greedy, f"avg@{k}": averages, f"pass@{k}": passes}.items():
        if values:
            numbers[f"{prefix}/{name}"], numbers[f"{prefix}/{name}_se"] = mean_and_error(values)
    return numbers


def mean_rewards(rewards: dict[str, dict[int, float]], prefix: str = "eval") -> dict[str, float]:
    """`eval/reward_greedy` and `eval/reward` (over the sampled answers): means with their standard errors over prompts.

    rewards: for each prompt, the reward of sample s (0 is the greedy one). Answers without one are absent.
    """
    greedy = [samples[0] for samples in rewards.values() if 0 in samples]
    sampled = [[reward for sample, reward in samples.items() if sample > 0] for samples in rewards.values()]
    averages = [sum(each) / len(each) for each in sampled if each]
    numbers = {}
    for name, values in {"reward_greedy": greedy, "reward": averages}.items():
        if values:
            numbers[f"{prefix}/{name}"], numbers[f"{prefix}/{name}_se"] = mean_and_error(values)
    return numbers


def by_domain(domains: dict[str, str | None]) -> dict[str, set[str]]:
    """The prompts of each domain, by `eval/<domain>`, the beginning of its metrics; a prompt of none is in none."""
    found: dict[str, set[str]] = {}
    for prompt_id, domain in sorted(domains.items()):
        if domain is not None:
            found.setdefault(f"eval/{safe_name(domain)}", set()).add(prompt_id)
    return found
