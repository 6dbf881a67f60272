"""Held-out accuracy and mean reward with their standard errors, over all prompts and by domain."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift.project.errors import UserError
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
    passes = [pass_at_k(k, sum(rights), k) for rights in sampled if len(rights) == k]
    return _means({"accuracy_greedy": greedy, f"avg@{k}": averages, f"pass@{k}": passes}, prefix)


def mean_rewards(rewards: dict[str, dict[int, float]], prefix: str = "eval") -> dict[str, float]:
    """`eval/reward_greedy` and `eval/reward` (over the sampled answers): means with their standard errors over prompts.

    rewards: for each prompt, the reward of sample s (0 is the greedy one). Answers without one are absent.
    """
    greedy = [samples[0] for samples in rewards.values() if 0 in samples]
    sampled = [[reward for sample, reward in samples.items() if sample > 0] for samples in rewards.values()]
    averages = [sum(each) / len(each) for each in sampled if each]
    return _means({"reward_greedy": greedy, "reward": averages}, prefix)


def _means(named: dict[str, list[float]], prefix: str) -> dict[str, float]:
    """`<prefix>/<name>` and `<prefix>/<name>_se` of each list that is not empty."""
    numbers = {}
    for name, values in named.items():
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


def rights_of(prompt_ids: Sequence[str], judges: dict[str, Sequence[float | None]]) -> list[float | None] | None:
    """Whether each answer is right (1 or 0): the value of the one reward that has one for it, null where none has.

    judges: the values of the rewards of evaluate.correct.
    """
    if not judges:
        return None
    for name, values in judges.items():
        for prompt_id, value in zip(prompt_ids, values, strict=True):
            if value not in (0.0, 1.0, None):
                raise UserError(
                    f"params.yaml: evaluate.correct: '{name}' gave {value:g} for prompt_id={prompt_id}; it must be a "
                    "reward that is 1 for a right answer and 0 for a wrong one, or null for mean rewards alone"
                )
    return pc.coalesce(*(pa.array(values, pa.float64()) for values in judges.values())).to_pylist()


def answer_numbers(
    rows: pa.Table, scores: pa.Table, prompts: pa.Table, judges: Sequence[str], source: dict[str, Any]
) -> dict[str, float]:
    """All that is known of a table of answers: its `evaluation`, lengths in tokens, and what has no reward.

    rows (with num_tokens and finish_reason) and scores: row by row. judges: the rewards of evaluate.correct; with any,
    unscored is what none of them judged. source: the answers' metadata.
    """
    prompt_ids, rewards = rows["prompt_id"].to_pylist(), scores["reward"].to_pylist()
    rights = rights_of(prompt_ids, {judge: scores[judge].to_pylist() for judge in judges})
    domains = prompts["domain"].to_pylist() if "domain" in prompts.column_names else [None] * prompts.num_rows
    domain_of = dict(zip(prompts["prompt_id"].to_pylist(), domains, strict=True))
    numbers = evaluation(prompt_ids, rows["sample"].to_pylist(), rewards, rights, domain_of, source["num_samples"])
    return numbers | {
        "eval/mean_length": pc.mean(rows["num_tokens"]).as_py(),
        "eval/clipped_ratio": pc.mean(pc.equal(rows["finish_reason"], "length")).as_py(),
        "eval/num_prompts_too_long": source["num_prompts_too_long"],
        "eval/num_unscored": (rewards if rights is None else rights).count(None),
    }


def evaluation(
    prompt_ids: Sequence[str],
    samples: Sequence[int],
    rewards: Sequence[float | None],
    rights: Sequence[float | None] | None,
    domains: dict[str, str | None],
    k: int,
) -> dict[str, float]:
    """`accuracies`, `mean_rewards` and `num_prompts` of all answers (`eval/...`) and by domain (`eval/<domain>/...`).

    An answer is a row: its prompt, sample, reward and whether it is right (`rights_of`), null where its reward failed.
    domains: of every prompt.
    """
    reward_of = _by_prompt(prompt_ids, samples, rewards)
    right_of = _by_prompt(prompt_ids, samples, rights) if rights is not None else {}
    numbers: dict[str, float] = {}
    groups = {"eval": set(reward_of)} | by_domain({prompt_id: domains[prompt_id] for prompt_id in reward_of})
    for prefix, of_it in groups.items():
        right = {key: {s: value == 1 for s, value in right_of[key].items()} for key in right_of if key in of_it}
        numbers |= accuracies(right, k, prefix)
        numbers |= mean_rewards({key: values for key, values in reward_of.items() if key in of_it}, prefix)
        numbers[f"{prefix}/num_prompts"] = len(of_it)
    return numbers


def _by_prompt(
    prompt_ids: Sequence[str], samples: Sequence[int], values: Sequence[float | None]
) -> dict[str, dict[int, float]]:
    """For each prompt the values of its samples; null ones are left out, prompts never."""
    found: dict[str, dict[int, float]] = {prompt_id: {} for prompt_id in prompt_ids}
    for prompt_id, sample, value in zip(prompt_ids, samples, values, strict=True):
        if value is not None:
            found[prompt_id][sample] = value
    return found
