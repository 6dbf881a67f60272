"""posterior: a few tries of many prompts say which teach most, and those are sampled (CurES, arXiv 2510.01037)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pydantic import Field

from gift.methods.sample.epochs import supply_problem
from gift.methods.sample.passes import Ask, Got, Passes, Sample, Stream, Wanted
from gift.project.errors import UserError
from gift.project.sections import Count, Positive, Section
from gift.project.seeds import seed_of

LEAST = 2  # completions of a group: fewer have nothing to compare


class Posterior(Section):
    """tries: the paper's cold start. The other numbers are ours: the paper's are not published."""

    pool: Count = Field(4, description="so many times prompts_per_round are tried")
    tries: Count = Field(4, description="completions of a prompt of the pool")
    temperature: Positive = Field(0.1, description="of the softmax over sqrt(p (1 - p)) by which prompts are taken")
    correct_from: float = Field(0.5, description="the least reward of a right completion")
    quotas: bool = Field(False, description="completions of a prompt by sqrt(p (1 - p)), too; false: equal groups")


def posterior(stream: Stream, wanted: Wanted, settings: Posterior) -> Passes:
    """Tries of `pool` times as many prompts, which do not train; then groups of those that the posterior takes.

    p is the mean of Beta(1 + right, 1 + wrong) over the tries. Prompts are taken without replacement, with weights
    exp(sqrt(p (1 - p)) / temperature): sqrt(p (1 - p)) bounds what a prompt's gradient can be.
    """
    candidates, _ = most(wanted, settings)
    if problem := supply_problem(candidates, stream.left, "posterior"):
        raise UserError(problem)
    found = yield [Ask(prompt, settings.tries) for prompt in stream.take(candidates)]
    spread = {got.ask.prompt_id: spread_of(got, settings.correct_from) for got in found}
    rng = random.Random(seed_of("posterior", stream.seed, stream.position))
    # The largest of score / temperature + Gumbel noise: a draw without replacement by the softmax of the scores.
    keys = {prompt: each / settings.temperature + gumbel(rng) for prompt, each in spread.items()}
    taken = sorted(sorted(keys, key=keys.__getitem__)[-wanted.prompts :])
    counts = [wanted.group_size] * len(taken)
    if settings.quotas:
        counts = shares([spread[prompt] for prompt in taken], wanted.group_size * len(taken))
    asks = [Ask(prompt, count) for prompt, count in zip(taken, counts, strict=True)]
    yield asks
    return asks


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` cut by weights into whole numbers of at least 2, by the largest remainders; of equal ones the first."""
    most = total - LEAST * len(weights)
    exact = [most * weight / sum(weights) for weight in weights]
    counts = [LEAST + int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda place: int(exact[place]) - exact[place])
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def gumbel(rng: random.Random) -> float:
    """A draw from the standard Gumbel distribution."""
    return -math.log(rng.expovariate(1.0))


def spread_of(got: Got, correct_from: float) -> float:
    """sqrt(p (1 - p)), p the posterior mean of a right completion; tries without a reward say nothing."""
    p = (1 + got.num_right(correct_from)) / (2 + len(got.known))
    return math.sqrt(p * (1 - p))


def most(wanted: Wanted, settings: Posterior) -> tuple[int, int]:
    prompts = settings.pool * wanted.prompts
    return prompts, prompts * settings.tries + wanted.prompts * wanted.group_size


METHOD = Sample(Posterior, posterior, most, takes_most=True)
