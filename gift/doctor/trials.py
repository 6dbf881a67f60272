"""Rewards on gold answers and on garbage: what a whole round would show too late, in a second."""

from collections.abc import Iterator

import pyarrow as pa

from gift.doctor.findings import Finding
from gift.doctor.rewards import REWARDS_KEY, say
from gift.doctor.whole import Project
from gift.project.errors import UserError
from gift.scoring.metrics import FAILED
from gift.scoring.plan import load_plan
from gift.scoring.rows import NOT_ASKED
from gift.scoring.score import total_rewards
from gift.scoring.trials import GOLD_COLUMNS, Trial, mean, try_rewards

LONG_SECONDS = 1800


def trial_findings(project: Project, prompts: pa.Table) -> Iterator[Finding]:
    """What each function made of a few rows, whether groups can have spread, and how long a round would take."""
    score = project.params.score
    alone = [one for one in load_plan(score, prompts) if one.alone]
    for one in alone:
        yield say.note(f"{REWARDS_KEY}.{one.name}: {one.function} was not tried: it needs its model")
    try:
        trials = try_rewards(score, prompts)
    except UserError as error:
        yield from say.refused(error)
        return
    for trial in trials:
        yield from _failures(trial)
        if trial.values:
            yield _right(trial) if trial.name in project.params.evaluate.judges else _graded(trial)
    if trials and not alone:
        yield from _spread(project, trials)
    if trials:
        yield _time(project, trials)


def _failures(trial: Trial) -> Iterator[Finding]:
    """Failed calls: a row whose gold fails in every form will fail in training, whatever is answered."""
    tried, count = list(trial.gold.values()) or list(trial.garbage.values()), len(trial.prompt_ids)
    failed = [row for row in range(count) if all(outcomes[row].status in FAILED for outcomes in tried)]
    if failed:
        first, prompt_id = tried[0][failed[0]], trial.prompt_ids[failed[0]]
        text = f"fails for {len(failed)} of {count} rows whatever the completion; prompt_id={prompt_id}: "
        text += f"{first.status}: {first.message}; mend the function, or the rows"
        yield say.found("error" if len(failed) == count else "warning", text, trial.key)
        return
    for name, garbage in trial.garbage.items():
        for outcome in garbage:
            if outcome.status in FAILED:
                text = f"fails for the completion {name}: {outcome.status}: {outcome.message}; give it a value, or None"
                yield say.warning(text, trial.key)
                return
    if all(outcome.status == "abstain" for outcome in trial.outcomes):
        yield say.warning(f"abstains (None) for all {count} rows, whatever the completion", trial.key)


def _graded(trial: Trial) -> Finding:
    """A reward of form or length need not tell right from wrong."""
    if len(trial.values) > 1:
        return say.ok(f"gives {trial.shown}", trial.key)
    text = f"gives {min(trial.values):g} to gold answers and garbage alike: fine for a reward of form, not of answers"
    return say.note(text, trial.key)


def _right(trial: Trial) -> Finding:
    """The reward of evaluate.correct must tell right from wrong."""
    if graded := sorted(trial.values - {0.0, 1.0}):
        text = f"{trial.name}: gave {graded[0]:g}; it must be 1 for a right answer and 0 for a wrong one"
        return say.error(f"params.yaml: evaluate.correct: {text}")
    wrong = max(map(mean, trial.garbage.values()))
    if not trial.gold and wrong > 0:
        return say.error(f"counts garbage as right: {trial.shown}", trial.key)
    if not trial.gold:
        text = f"no column of gold answers ({', '.join(GOLD_COLUMNS)}) to try it on; garbage gives 0"
        return say.note(text, trial.key)
    if mean(trial.gold[trial.best]) <= wrong:
        remedy = "look at the form it expects, and at the columns"
        return say.error(f"does not tell a gold answer from garbage: {trial.shown}; {remedy}", trial.key)
    if wrong > 0:
        return say.warning(f"counts garbage as right in some rows: {trial.shown}", trial.key)
    rows = enumerate(trial.prompt_ids)
    if never := [key for row, key in rows if not any(each[row].value == 1 for each in trial.gold.values())]:
        text = f"counts the gold answer of {len(never)} of {len(trial.prompt_ids)} rows as wrong in every form"
        return say.warning(f"{text}, such as that of prompt_id={never[0]}", trial.key)
    return say.ok(f"tells gold answers from garbage: {trial.shown}", trial.key)


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
