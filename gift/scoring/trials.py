"""Reward functions on gold answers and on garbage, for a few prompts."""

from dataclasses import dataclass, field

import pyarrow as pa

from gift.rewards.gold import forms, gold_texts, short, written
from gift.scoring.asked import Asked
from gift.scoring.loading import Loaded
from gift.scoring.plan import load_plan
from gift.scoring.rows import PartRows, Prompts
from gift.scoring.settings import Score
from gift.scoring.workers.pool import RewardPool
from gift.scoring.workers.worker import Outcome

NUM_ROWS = 8
GARBAGE = ("", "asdf")


@dataclass
class Trial:
    """One function's outcomes: `gold` by the form of the answer, `garbage` by its text, each for the sampled rows.

    `share` is the share of the prompts that it is asked for.
    """

    name: str
    prompt_ids: list[str]
    share: float = 1.0
    gold: dict[str, list[Outcome]] = field(default_factory=dict)
    garbage: dict[str, list[Outcome]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"params.yaml: score.rewards.{self.name}"

    @property
    def outcomes(self) -> list[Outcome]:
        return [each for row in (*self.gold.values(), *self.garbage.values()) for each in row]

    @property
    def best(self) -> str:
        """The form of the gold answer that is worth most; the first of equals."""
        return max(self.gold, key=lambda form: mean(self.gold[form]))

    @property
    def shown(self) -> str:
        """The mean values by text, for a message."""
        gold = {f"gold ({self.best})": self.gold[self.best]} if self.gold else {}
        return ", ".join(f"{name} {mean(row):g}" for name, row in {**gold, **self.garbage}.items())

    @property
    def values(self) -> set[float]:
        return {outcome.value for outcome in self.outcomes if outcome.value is not None}


def try_rewards(score: Score, prompts: pa.Table) -> list[Trial]:
    """Each function on a few of the prompts that it is asked for; not those that hold a model or ask a server."""
    plan = [one for one in load_plan(score, prompts) if not one.alone]
    masks, trials = Asked(score, Prompts(prompts)).masks, list[Trial]()
    chosen = sorted({row for mask in masks.values() for row in _spaced(mask.nonzero()[0].tolist())})
    with RewardPool(plan, 1, score.timeout_seconds, score.memory_gib) as pool:
        for one in plan:
            rows = prompts.take([row for row in chosen if masks[one.name][row]])
            trials.append(_try(pool, one, rows, float(masks[one.name].mean())))
    return trials


def _spaced(rows: list[int]) -> list[int]:
    """A few of the rows, evenly over all of them."""
    return sorted({rows[index * len(rows) // NUM_ROWS] for index in range(NUM_ROWS)}) if rows else []


def _try(pool: RewardPool, reward: Loaded, rows: pa.Table, share: float) -> Trial:
    """All forms and garbage first; then the gold of another row, in the form that was worth most."""
    trial = Trial(reward.name, rows["prompt_id"].to_pylist(), share)

    def outcomes(texts: list[str]) -> list[Outcome]:
        ids = pa.array([range(len(text)) for text in texts], pa.list_(pa.int32()))  # as many as there would be at most
        part = {"prompt_id": rows["prompt_id"], "sample": [0] * len(texts), "completion": texts, "completion_ids": ids}
        calls = [(reward.name, [row]) for row in range(len(texts))]
        arguments = PartRows(pa.table(part), Prompts(rows), "").arguments
        found = {row: outcome for _, row, outcome in pool.run(calls, arguments)}
        return [found[row] for row in range(len(texts))]

    golds = gold_texts(reward.settings, rows)
    for form in forms(golds):
        trial.gold[form] = outcomes([written(gold, form) for gold in golds])
    trial.garbage |= {repr(text): outcomes([text] * rows.num_rows) for text in GARBAGE}
    others = [next((other for other in golds if short(other) != short(gold)), None) for gold in golds]
    if golds and None not in others:
        trial.garbage["another row's gold"] = outcomes([written(str(other), trial.best) for other in others])
    return trial


def mean(outcomes: list[Outcome]) -> float:
    """Of the values that there are; less than any value where there is none."""
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    return sum(values) / len(values) if values else float("-inf")
