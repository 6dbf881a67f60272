"""Two policies on the same held-out prompts: the mean difference with its interval, and which answers flipped.

The answers of all rounds are drawn on common random numbers, so that differences by prompt vary less than accuracies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gift.evaluation.estimates import mean_and_error
from gift.project.errors import UserError

Z95 = 1.96
"""Standard errors on either side of a mean in its 95 % interval, by the normal distribution."""

Values = Mapping[tuple[str, int], float]
"""By prompt and sample (0 is the greedy one): 1 for a right answer and 0 for a wrong one, or a reward."""


@dataclass(frozen=True)
class Paired:
    """Of `other` less `one`, over the prompts that both answered: the mean difference and its standard error.

    gained, lost: the prompts whose greedy answer became right, or wrong.
    """

    mean: float
    error: float
    num_prompts: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean difference."""
        return self.mean - Z95 * self.error, self.mean + Z95 * self.error


def paired(one: Values, other: Values, *, greedy: bool) -> Paired:
    """Compare two policies by their greedy answers, or by the mean of each prompt's sampled ones.

    A prompt counts whose answers have a value under both policies; a `UserError` where there is none.
    """
    means = [_by_prompt(values, greedy) for values in (one, other)]
    both = [prompt_id for prompt_id in means[0] if prompt_id in means[1]]
    if not both:
        raise UserError("no prompt was answered under both policies: they were evaluated on other prompts")
    mean, error = mean_and_error([means[1][prompt_id] - means[0][prompt_id] for prompt_id in both])
    before, after = (_by_prompt(values, greedy=True) for values in (one, other))
    flips = {prompt_id: after[prompt_id] - before[prompt_id] for prompt_id in before if prompt_id in after}
    gained, lost = (tuple(each for each, step in flips.items() if step * sign > 0) for sign in (1, -1))
    return Paired(mean, error, len(both), gained, lost)


def _by_prompt(values: Values, greedy: bool) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for (prompt_id, sample), value in values.items():
        if (sample == 0) == greedy and not math.isnan(value):
            found.setdefault(prompt_id, []).append(value)
    return {prompt_id: sum(each) / len(each) for prompt_id, each in found.items()}
