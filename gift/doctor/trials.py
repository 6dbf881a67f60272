"""Every reward function on gold answers and on garbage: what a whole round would show too late, in a second."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gift.doctor.findings import Finding, refusal
from gift.doctor.rewards import THEME, arguments, is_alone
from gift.doctor.settings import Project
from gift.project.errors import UserError
from gift.scoring.asked import NOT_ASKED, Asked
from gift.scoring.failures import FAILED
from gift.scoring.loading import Loaded
from gift.scoring.plan import load_plan
from gift.scoring.rows import Prompts
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

    reward: Loaded
    prompt_ids: list[str]
    share: float = 1.0
    gold: dict[str, list[Outcome]] = field(default_factory=dict)
    garbage: dict[str, list[Outcome]] = field(default_factory=dict)

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


def trial_findings(project: Project, prompts: pa.Table) -> list[Finding]:
    """What each function made of a few rows, whether groups can have spread, and how long a round would take."""
    score = project.params.score
    findings = [
        Finding(
            "note", THEME, f"{reward.function} was not tried: it needs its model", f"params.yaml: score.rewards.{name}"
        )
        for name, reward in score.rewards.items()
        if is_alone(reward)
    ]
    plan = [one for one in load_plan(score, prompts) if not one.alone]
    if not plan:
        return findings
    masks = Asked(score, Prompts(prompts)).masks
    chosen = sorted({row for mask in masks.values() for row in _spaced(mask.nonzero()[0].tolist())})
    trials = []
    try:
        with RewardPool(plan, 1, score.timeout_seconds, score.memory_gib) as pool:
            for one in plan:
                rows = prompts.take([row for row in chosen if masks[one.name][row]])
                share = float(masks[one.name].mean())
                trials.append(_try(pool, one, rows, _gold_column(project, one, rows), share))
    except UserError as error:
        return [*findings, refusal(THEME, error)]
    for trial in trials:
        findings += _failures(trial)
        findings += _judgement(trial, trial.reward.name in project.params.evaluate.judges)
    if not any(is_alone(reward) for reward in score.rewards.values()):
        findings += _spread(project, trials)
    return [*findings, _time(project, trials)]


def _spaced(rows: list[int]) -> list[int]:
    """A few of the rows, evenly over all of them."""
    return sorted({rows[index * len(rows) // NUM_ROWS] for index in range(NUM_ROWS)}) if rows else []


def _try(pool: RewardPool, reward: Loaded, rows: pa.Table, column: str | None, share: float) -> Trial:
    """All forms and garbage first; then the gold of another row, in the form that was worth most."""
    trial = Trial(reward, rows["prompt_id"].to_pylist(), share)

    def outcomes(texts: list[str]) -> list[Outcome]:
        calls = [(index, reward.name, arguments(reward, rows, index, text)) for index, text in enumerate(texts)]
        found = {index: outcome for index, _, outcome in pool.run(calls)}
        return [found[index] for index in range(len(texts))]

    golds = [_text(value) for value in rows[column].to_pylist()] if column else []
    forms = [WHOLE] * any(_short(gold) != gold for gold in golds) + list(FORMS)
    if column:
        trial.gold |= {form: outcomes([_written(gold, form) for gold in golds]) for form in forms}
    trial.garbage |= {repr(text): outcomes([text] * rows.num_rows) for text in GARBAGE}
    others = [next((other for other in golds if _short(other) != _short(gold)), None) for gold in golds]
    if golds and None not in others:
        trial.garbage["another row's gold"] = outcomes([_written(str(other), trial.best) for other in others])
    return trial


def _failures(trial: Trial) -> list[Finding]:
    """Failed calls: a row whose gold fails in every form will fail in training, whatever is answered."""
    where = f"params.yaml: score.rewards.{trial.reward.name}"
    count = len(trial.prompt_ids)
    golds = list(trial.gold.values()) or list(trial.garbage.values())
    for row, prompt_id in enumerate(trial.prompt_ids):
        outcomes = [each[row] for each in golds]
        if all(outcome.status in FAILED for outcome in outcomes):
            failed = sum(all(each[place].status in FAILED for each in golds) for place in range(count))
            text = (
                f"fails for {failed} of {count} rows whatever the completion; prompt_id={prompt_id}: "
                f"{outcomes[0].status}: {outcomes[0].message}; mend the function, or the rows"
            )
            return [Finding("error" if failed == count else "warning", THEME, text, where)]
    for name, garbage in trial.garbage.items():
        failed_one = next((outcome for outcome in garbage if outcome.status in FAILED), None)
        if failed_one:
            text = (
                f"fails for the completion {name}: {failed_one.status}: {failed_one.message}; give it a value, or None"
            )
            return [Finding("warning", THEME, text, where)]
    if all(outcome.status == "abstain" for outcome in trial.outcomes):
        return [Finding("warning", THEME, f"abstains (None) for all {count} rows, whatever the completion", where)]
    return []


def _judgement(trial: Trial, is_correct: bool) -> list[Finding]:
    """Whether it tells right from wrong. Only the reward of evaluate.correct must; one of form or length need not."""
    where = f"params.yaml: score.rewards.{trial.reward.name}"
    values = {outcome.value for outcome in trial.outcomes if outcome.value is not None}
    if not values:
        return []
    graded = sorted(values - {0.0, 1.0})
    if is_correct and graded:
        text = f"{trial.reward.name}: gave {graded[0]:g}; it must be 1 for a right answer and 0 for a wrong one"
        return [Finding("error", THEME, text, "params.yaml: evaluate.correct")]
    wrong = max(map(_mean, trial.garbage.values()))
    if not is_correct:
        if len(values) == 1:
            text = (
                f"gives {values.pop():g} to gold answers and garbage alike: fine for a reward of form, not of answers"
            )
            return [Finding("note", THEME, text, where)]
        return [Finding("ok", THEME, f"gives {trial.shown}", where)]
    if not trial.gold:
        if wrong > 0:
            return [Finding("error", THEME, f"counts garbage as right: {trial.shown}", where)]
        text = f"no column of gold answers ({', '.join(GOLD_COLUMNS)}) to try it on; garbage gives 0"
        return [Finding("note", THEME, text, where)]
    if _mean(trial.gold[trial.best]) <= wrong:
        text = (
            f"does not tell a gold answer from garbage: {trial.shown}; look at the form it expects, and at the columns"
        )
        return [Finding("error", THEME, text, where)]
    if wrong > 0:
        return [Finding("warning", THEME, f"counts garbage as right in some rows: {trial.shown}", where)]
    never = [
        prompt_id
        for row, prompt_id in enumerate(trial.prompt_ids)
        if not any(outcomes[row].value == 1 for outcomes in trial.gold.values())
    ]
    if never:
        share = f"{len(never)} of {len(trial.prompt_ids)} rows"
        text = f"counts the gold answer of {share} as wrong in every form, such as that of prompt_id={never[0]}"
        return [Finding("warning", THEME, text, where)]
    return [Finding("ok", THEME, f"tells gold answers from garbage: {trial.shown}", where)]


def _spread(project: Project, trials: list[Trial]) -> list[Finding]:
    """Groups train on differences: two texts must be worth different rewards in at least one row."""
    rewards = project.params.score.rewards
    for prompt_id in dict.fromkeys(prompt_id for trial in trials for prompt_id in trial.prompt_ids):
        by_kind = {
            trial.reward.name: {
                kind: outcomes[trial.prompt_ids.index(prompt_id)]
                for kind, outcomes in {**trial.gold, **trial.garbage}.items()
            }
            for trial in trials
            if prompt_id in trial.prompt_ids
        }
        common = set.intersection(*map(set, by_kind.values()))
        outcomes = {
            name: [by_kind[name][kind] if name in by_kind else NOT_ASKED for kind in common] for name in rewards
        }
        if len({*total_rewards(rewards, outcomes)} - {None}) > 1:
            return []
    text = "every text that was tried gives the same reward in its row: without spread no group can train"
    return [Finding("warning", THEME, text, "params.yaml: score.rewards")]


def _time(project: Project, trials: list[Trial]) -> Finding:
    """Seconds that the calls of a round take, by the mean of those made here."""
    generate, workers = project.params.generate, project.launch.score.workers
    each = {
        trial.reward.name: trial.share * sum(o.seconds for o in trial.outcomes) / len(trial.outcomes)
        for trial in trials
    }
    num = generate.prompts_per_round * generate.group_size
    total = num * sum(each.values()) / workers
    slowest = max(each, key=lambda name: each[name])
    text = (
        f"about {1000 * sum(each.values()):.2g} ms a completion, most of it '{slowest}': {total:,.2g} s for {num:,} of "
        f"a round with {workers} workers"
    )
    if total > LONG_SECONDS:
        return Finding("warning", THEME, f"{text}; raise it where there are more cores", "launch.yaml: score.workers")
    return Finding("ok", THEME, text)


def _gold_column(project: Project, reward: Loaded, rows: pa.Table) -> str | None:
    """The column of gold answers: what the function's setting `column` says, or the first usual name that is there.

    Of a mixture's columns those are left out that are another source's, and null in all of these rows.
    """
    wanted = project.params.score.rewards[reward.name].settings.get("column")
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
