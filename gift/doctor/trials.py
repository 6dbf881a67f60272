"""Every reward function on gold answers and on garbage: what a whole round would show too late, in a second."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gift.doctor.findings import Finding
from gift.doctor.rewards import REWARDS_KEY, say
from gift.doctor.whole import Project
from gift.project.errors import UserError
from gift.scoring.asked import NOT_ASKED, Asked
from gift.scoring.failures import FAILED
from gift.scoring.loading import Loaded
from gift.scoring.plan import load_plan
from gift.scoring.rows import PartRows, Prompts
from gift.scoring.score import total_rewards
from gift.scoring.workers.pool import RewardPool
from gift.scoring.workers.worker import Outcome

NUM_ROWS = 8
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
GARBAGE = ("", "asdf")
LONG_SECONDS = 1800


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
    def where(self) -> str:
        return f"{REWARDS_KEY}.{self.name}"

    @property
    def outcomes(self) -> list[Outcome]:
        return [each for row in (*self.gold.values(), *self.garbage.values()) for each in row]

    @property
    def best(self) -> str:
        """The form of the gold answer that is worth most; the first of equals."""
        return max(self.gold, key=lambda form: _mean(self.gold[form]))

    @property
    def shown(self) -> str:
        """The mean values by text, for a message."""
        gold = {f"gold ({self.best})": self.gold[self.best]} if self.gold else {}
        return ", ".join(f"{name} {_mean(row):g}" for name, row in {**gold, **self.garbage}.items())


def trial_findings(project: Project, prompts: pa.Table) -> Iterator[Finding]:
    """What each function made of a few rows, whether groups can have spread, and how long a round would take."""
    score = project.params.score
    plan = load_plan(score, prompts)
    alone = [one for one in plan if one.alone]
    for one in alone:
        yield say.note(f"{one.function} was not tried: it needs its model", f"{REWARDS_KEY}.{one.name}")
    if len(alone) == len(plan):
        return
    masks, trials = Asked(score, Prompts(prompts)).masks, list[Trial]()
    chosen = sorted({row for mask in masks.values() for row in _spaced(mask.nonzero()[0].tolist())})
    try:
        with RewardPool([one for one in plan if not one.alone], 1, score.timeout_seconds, score.memory_gib) as pool:
            for one in plan:
                if not one.alone:
                    rows = prompts.take([row for row in chosen if masks[one.name][row]])
                    trials.append(_try(pool, one, rows, float(masks[one.name].mean())))
    except UserError as error:
        yield from say.refused(error)
        return
    for trial in trials:
        yield from _failures(trial)
        if values := {outcome.value for outcome in trial.outcomes if outcome.value is not None}:
            yield (_right(trial, values) if trial.name in project.params.evaluate.judges else _graded(trial, values))
    if not alone:
        yield from _spread(project, trials)
    yield _time(project, trials)


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

    column = _gold_column(reward, rows)
    golds = [_text(value) for value in rows[column].to_pylist()] if column else []
    for form in [WHOLE] * any(_short(gold) != gold for gold in golds) + list(FORMS) if golds else []:
        trial.gold[form] = outcomes([_written(gold, form) for gold in golds])
    trial.garbage |= {repr(text): outcomes([text] * rows.num_rows) for text in GARBAGE}
    others = [next((other for other in golds if _short(other) != _short(gold)), None) for gold in golds]
    if golds and None not in others:
        trial.garbage["another row's gold"] = outcomes([_written(str(other), trial.best) for other in others])
    return trial


def _failures(trial: Trial) -> Iterator[Finding]:
    """Failed calls: a row whose gold fails in every form will fail in training, whatever is answered."""
    tried, count = list(trial.gold.values()) or list(trial.garbage.values()), len(trial.prompt_ids)
    failed = [row for row in range(count) if all(outcomes[row].status in FAILED for outcomes in tried)]
    if failed:
        first, prompt_id = tried[0][failed[0]], trial.prompt_ids[failed[0]]
        text = f"fails for {len(failed)} of {count} rows whatever the completion; prompt_id={prompt_id}: "
        text += f"{first.status}: {first.message}; mend the function, or the rows"
        yield say.found("error" if len(failed) == count else "warning", text, trial.where)
        return
    for name, garbage in trial.garbage.items():
        for outcome in garbage:
            if outcome.status in FAILED:
                text = f"fails for the completion {name}: {outcome.status}: {outcome.message}; give it a value, or None"
                yield say.warning(text, trial.where)
                return
    if all(outcome.status == "abstain" for outcome in trial.outcomes):
        yield say.warning(f"abstains (None) for all {count} rows, whatever the completion", trial.where)


def _graded(trial: Trial, values: set[float]) -> Finding:
    """A reward of form or length need not tell right from wrong."""
    if len(values) > 1:
        return say.found("ok", f"gives {trial.shown}", trial.where)
    text = f"gives {values.pop():g} to gold answers and garbage alike: fine for a reward of form, not of answers"
    return say.note(text, trial.where)


def _right(trial: Trial, values: set[float]) -> Finding:
    """The reward of evaluate.correct must tell right from wrong."""
    if graded := sorted(values - {0.0, 1.0}):
        text = f"{trial.name}: gave {graded[0]:g}; it must be 1 for a right answer and 0 for a wrong one"
        return say.error(f"params.yaml: evaluate.correct: {text}")
    wrong = max(map(_mean, trial.garbage.values()))
    if not trial.gold and wrong > 0:
        return say.error(f"counts garbage as right: {trial.shown}", trial.where)
    if not trial.gold:
        text = f"no column of gold answers ({', '.join(GOLD_COLUMNS)}) to try it on; garbage gives 0"
        return say.note(text, trial.where)
    if _mean(trial.gold[trial.best]) <= wrong:
        remedy = "look at the form it expects, and at the columns"
        return say.error(f"does not tell a gold answer from garbage: {trial.shown}; {remedy}", trial.where)
    if wrong > 0:
        return say.warning(f"counts garbage as right in some rows: {trial.shown}", trial.where)
    rows = enumerate(trial.prompt_ids)
    if never := [key for row, key in rows if not any(each[row].value == 1 for each in trial.gold.values())]:
        text = (
            f"counts the gold answer of {len(never)} of {len(trial.prompt_ids)} rows as wrong in every form, such as "
        )
        return say.warning(f"{text}that of prompt_id={never[0]}", trial.where)
    return say.found("ok", f"tells gold answers from garbage: {trial.shown}", trial.where)


def _spread(project: Project, trials: list[Trial]) -> Iterator[Finding]:
    """Groups train on differences: two texts must be worth different rewards in at least one row."""
    rewards = project.params.score.rewards
    for prompt_id in dict.fromkeys(prompt_id for trial in trials for prompt_id in trial.prompt_ids):
        by_text = {
            trial.name: {
                text: row[trial.prompt_ids.index(prompt_id)] for text, row in {**trial.gold, **trial.garbage}.items()
            }
            for trial in trials
            if prompt_id in trial.prompt_ids
        }
        texts = set.intersection(*map(set, by_text.values()))
        outcomes = {name: [by_text[name][t] if name in by_text else NOT_ASKED for t in texts] for name in rewards}
        if len({*total_rewards(rewards, outcomes)} - {None}) > 1:
            return
    text = "every text that was tried gives the same reward in its row: without spread no group can train"
    yield say.warning(f"{REWARDS_KEY}: {text}")


def _time(project: Project, trials: list[Trial]) -> Finding:
    """Seconds that the calls of a round take, by the mean of those made here."""
    generate, workers = project.params.generate, project.launch.score.workers
    each = {one.name: one.share * sum(o.seconds for o in one.outcomes) / len(one.outcomes) for one in trials}
    number = generate.prompts_per_round * generate.group_size
    total, slowest = number * sum(each.values()) / workers, max(each, key=lambda name: each[name])
    text = f"about {1000 * sum(each.values()):.2g} ms a completion, most of it '{slowest}': "
    text += f"{total:,.2g} s for {number:,} of a round with {workers} workers"
    if total > LONG_SECONDS:
        return say.warning(f"{text}; raise it where there are more cores", "launch.yaml: score.workers")
    return say.ok(text)


def _gold_column(reward: Loaded, rows: pa.Table) -> str | None:
    """The column of gold answers: what the function's setting `column` says, or the first usual name that is there.

    Of a mixture's columns those are left out that are another source's, and null in all of these rows.
    """
    wanted = reward.settings.get("column")
    names = (wanted, *GOLD_COLUMNS) if isinstance(wanted, str) else GOLD_COLUMNS
    return next((name for name in names if name in rows.column_names and rows[name].null_count < len(rows)), None)


def _text(gold: Any) -> str:
    """A gold answer as text, of several the first; verl keeps it in a struct."""
    if isinstance(gold, dict) and "ground_truth" in gold:
        return _text(gold["ground_truth"])
    if isinstance(gold, list):
        return _text(gold[0] if gold else None)
    return "" if gold is None else str(gold)


def _written(gold: str, form: str) -> str:
    return gold if form == WHOLE else FORMS[form].format(_short(gold))


def _short(gold: str) -> str:
    return gold.rpartition("####")[2].strip()


def _mean(outcomes: list[Outcome]) -> float:
    """Of the values that there are; less than any value where there is none."""
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    return sum(values) / len(values) if values else float("-inf")
