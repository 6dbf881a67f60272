"""A second look at what rewards said: values that change from call to call, and a value that is everybody's."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from gift.scoring.loading import Loaded
from gift.scoring.process import Call
from gift.scoring.settings import Reward
from gift.scoring.worker import Outcome

NUM_ROWS = 8  # of a function that are called again, once a round
MAX_SECONDS = 1.0  # a slower call is not made again
ROUNDING = 1e-5  # a difference that is no other opinion, such as a GPU's


def calls_again(
    plan: Sequence[Loaded], calls: Sequence[Call], outcomes: Mapping[str, Mapping[int, Outcome]]
) -> list[Call]:
    """Some calls of each function of the user, evenly over those that were quick and did not fail.

    Ours are left out: they are functions of their arguments, or keep the answers that they paid for.
    """
    again: list[Call] = []
    for reward in plan:
        own = [rows for name, rows in calls if name == reward.name and reward.file is not None]
        good = [rows for rows in own if all(_is_quick(outcomes[reward.name][row]) for row in rows)]
        count = min(len(good), max(1, NUM_ROWS // len(good[0]))) if good and NUM_ROWS else 0
        again += [(reward.name, good[place * len(good) // count]) for place in range(count)]
    return again


def _is_quick(outcome: Outcome) -> bool:
    return outcome.status in ("ok", "abstain") and outcome.seconds <= MAX_SECONDS


def is_change(first: Outcome, second: Outcome) -> bool:
    """Whether a function says something else of the same arguments; a second call that fails says nothing."""
    return second.status in ("ok", "abstain") and not _same(first.value, second.value)


def changed(first: Outcome, second: Outcome) -> str:
    return (
        f"gave {_shown(first)}, and {_shown(second)} when it was called again with the same arguments; values are kept "
        "and rounds are made again, so a reward must depend on its arguments alone: take random numbers, clocks and "
        "counters out of it, or seed them with the arguments"
    )


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _shown(outcome: Outcome) -> str:
    return "None" if outcome.value is None else f"{outcome.value:g}"


def constant_rewards(scores: pa.Table, rewards: Mapping[str, Reward]) -> Iterator[str]:
    """A line for each reward that gave every completion of two groups or more the same value."""
    for name, reward in rewards.items():
        known = scores.filter(pc.is_valid(scores[name]))
        values = known[name].unique()
        if len(values) == 1 and len(known["prompt_id"].unique()) > 1:
            yield (
                f"score.rewards.{name}: every one of the {known.num_rows:,} completions got {values[0].as_py():g} from "
                f"{reward.function}; right where the task is that easy or that hard, else look at what it reads: its "
                "columns, its settings, and the completions (`gift inspect`)"
            )
