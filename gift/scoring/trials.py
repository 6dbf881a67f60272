"""Reward functions on gold answers, in the forms in which they expect them, and on garbage, for a few prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gift.scoring.loading import Loaded
from gift.scoring.looks import changed, is_change
from gift.scoring.plan import load_plan
from gift.scoring.pool import RewardPool
from gift.scoring.rows import Asked, PartRows
from gift.scoring.settings import Score
from gift.scoring.worker import Outcome

NUM_ROWS = 8
GARBAGE = ("", "asdf")
GOLD_COLUMNS = ("answer", "ground_truth", "reward_model", "solution", "code", "target")
# The forms in which functions expect an answer; "x" is the gold itself, or what stands behind its last "####".
FORMS = {
    "x": "{}",
    "#x": "#{}",
    "#### x": "#### {}",
    "\\boxed{x}": "\\boxed{{{}}}",
    "Answer: x": "Answer: {}",
    "<answer>x</answer>": "<answer>{}</answer>",
    "<think>...<answer>x</answer>": "<think>\nx\n</think>\n<answer>\n{}\n</answer>",
    "```x```": "```python\n{}\n```",
}
WHOLE = "as it stands"


@dataclass
class Trial:
    """One function's outcomes: `gold` by the form of the answer, `garbage` by its text, each for the sampled rows."""

    name: str
    prompt_ids: list[str]
    share: float  # of the prompts that it is asked for
    gold: dict[str, list[Outcome]] = field(default_factory=dict)
    garbage: dict[str, list[Outcome]] = field(default_factory=dict)
    change: str | None = None  # a row, and what the function said of it first and then

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
    everyone = Asked(score, prompts)
    plan = [one for one in load_plan(score, everyone) if not one.alone]
    masks, trials, chosen = everyone.masks, list[Trial](), set[int]()
    for mask in masks.values():  # a few rows of each, evenly over all of them
        rows = mask.nonzero()[0].tolist()
        chosen |= {rows[index * len(rows) // NUM_ROWS] for index in range(NUM_ROWS) if rows}
    with RewardPool(plan, 1, score.timeout_seconds, score.memory_gib) as pool:
        for one in plan:
            asked = Asked(score, prompts.take([row for row in sorted(chosen) if masks[one.name][row]]))
            trials.append(_try(pool, one, asked, float(masks[one.name].mean())))
    return trials


def _try(pool: RewardPool, reward: Loaded, asked: Asked, share: float) -> Trial:
    """All forms and garbage first; then the gold of another row, in the form that was worth most."""
    rows = asked.table
    trial = Trial(reward.name, rows["prompt_id"].to_pylist(), share)

    def outcomes(texts: list[str]) -> list[Outcome]:
        ids = pa.array([range(len(text)) for text in texts], pa.list_(pa.int32()))  # as many as there would be at most
        part = {"prompt_id": rows["prompt_id"], "sample": [0] * len(texts), "completion": texts, "completion_ids": ids}
        calls = [(reward.name, [row]) for row in range(len(texts))]
        found = {row: each for _, row, each in pool.run(calls, PartRows(pa.table(part), asked, "").arguments)}
        return [found[row] for row in range(len(texts))]

    golds = gold_texts(reward.settings, rows)
    whole = [WHOLE] * any(_short(gold) != gold for gold in golds)
    for form in [*whole, *FORMS] if golds else []:
        trial.gold[form] = outcomes([_written(gold, form) for gold in golds])
    trial.garbage |= {repr(text): outcomes([text] * rows.num_rows) for text in GARBAGE}
    if reward.file is not None:
        pairs = zip(
            trial.prompt_ids, trial.garbage[repr(GARBAGE[-1])], outcomes([GARBAGE[-1]] * rows.num_rows), strict=True
        )
        changes = (f"prompt_id={key}: {changed(*pair)}" for key, *pair in pairs if is_change(*pair))
        trial.change = next(changes, None)
    others = [next((other for other in golds if _short(other) != _short(gold)), None) for gold in golds]
    if golds and None not in others:
        trial.garbage["another row's gold"] = outcomes([_written(str(other), trial.best) for other in others])
    return trial


def mean(outcomes: list[Outcome]) -> float:
    """Of the values that there are; less than any value where there is none."""
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    return sum(values) / len(values) if values else float("-inf")


def gold_texts(settings: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """The gold answer of each row, in the column that the setting `column` names, or else a usual name; none without.

    Of a mixture's columns those are left out that are another source's, and null in all of these rows.
    """
    wanted = settings.get("column")
    names = (wanted, *GOLD_COLUMNS) if isinstance(wanted, str) else GOLD_COLUMNS
    there = (name for name in names if name in rows.column_names and rows[name].null_count < len(rows))
    column = next(there, None)
    return [_text(value) for value in rows[column].to_pylist()] if column else []


def _written(gold: str, form: str) -> str:
    return gold if form == WHOLE else FORMS[form].format(_short(gold))


def _short(gold: str) -> str:
    """The answer alone, behind the worked solution of GSM8K."""
    return gold.rpartition("####")[2].strip()


def _text(gold: Any) -> str:
    """A gold answer as text, of several the first; verl keeps it in a struct."""
    if isinstance(gold, dict) and "ground_truth" in gold:
        return _text(gold["ground_truth"])
    if isinstance(gold, list):
        return _text(gold[0] if gold else None)
    return "" if gold is None else str(gold)
