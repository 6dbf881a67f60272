"""Held-out accuracy and its standard errors, from which answers were right."""

import math
from collections.abc import Sequence

import numpy as np


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


def accuracies(correct: dict[str, dict[int, bool]], k: int) -> dict[str, float]:
    """`eval/accuracy_greedy`, `eval/avg@k` and `eval/pass@k`, each with its standard error over prompts.

    correct: for each prompt, whether sample s is right (0 is the greedy one, 1 .. k the sampled ones). Answers whose
    reward failed are absent; they count in no mean.
    """
    greedy = [float(samples[0]) for samples in correct.values() if 0 in samples]
    sampled = [[right for sample, right in samples.items() if sample > 0] for samples in correct.values()]
    averages = [sum(rights) / len(rights) for rights in sampled if rights]
    whole = [rights for rights in sampled if len(rights) == k]
    passes = [pass_at_k(k, sum(rights), k) for rights in whole]
    numbers = {}
    for name, values in {"accuracy_greedy": greedy, f"avg@{k}": averages, f"pass@{k}": passes}.items():
        numbers[f"eval/{name}"], numbers[f"eval/{name}_se"] = mean_and_error(values)
    return numbers
