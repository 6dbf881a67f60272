"""Rewards: whether they load, are asked for every prompt and can train; and what they make of gold and garbage."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from gift.doctor.findings import Finding, Theme
from gift.doctor.model import read_model
from gift.doctor.prompts import Prompts
from gift.doctor.whole import Params, Project
from gift.project.code import code_of
from gift.project.errors import UserError
from gift.project.params import PARAMS, settings_of
from gift.project.rounds import lay_over, read_rounds
from gift.project.sections import check
from gift.project.yaml import read_yaml
from gift.rewards.judge_client import ENDPOINT
from gift.rewards.total import counting
from gift.scoring.metrics import FAILED
from gift.scoring.plan import check_rewards, load_plan, settings_problems
from gift.scoring.rows import NOT_ASKED, Asked, Mask, column_values
from gift.scoring.scorer import total_rewards
from gift.scoring.settings import Reward, Score
from gift.scoring.trials import GOLD_COLUMNS, Trial, mean, try_rewards
from gift.tables.counting import rewards_digest
from gift.tables.where import is_one_of

say = Theme("rewards")
LONG_SECONDS = 1800
REWARDS_KEY = "params.yaml: score.rewards"
# Of our functions those that give more than 0 and 1, so that none of them tells right from wrong.
GRADED = (
    *("arithmetic_near", "arithmetic_steps", "cosine_length", "judge", "length", "ngram_diversity", "overlong"),
    *("repetition", "reward_model"),
)


def reward_findings(project: Project, prompts: Prompts | None) -> Iterator[Finding]:
    """What `check_rewards` would refuse where the columns are known, else what can be said without; and the weights."""
    params = project.params
    score, judges = params.score, params.evaluate.judges
    if not any(reward.weight for reward in score.rewards.values()):
        yield say.error(f"{REWARDS_KEY}: every weight is 0: all rewards are equal, and no group can train; raise one")
    for name in judges:
        reward = score.rewards[name]
        if reward.weight < 0:
            text = f"{reward.weight:g}: trains away from what evaluate.correct counts as right"
            yield say.warning(f"{REWARDS_KEY}.{name}.weight: {text}")
        if reward.function in GRADED:
            text = f"{name}: {reward.function} is graded; it must be 1 where the answer is right, else 0"
            yield say.error(f"params.yaml: evaluate.correct: {text}")
    for name, reward in score.rewards.items():
        if reward.function == "judge" and not (project.launch.score.judge_endpoint or os.environ.get(ENDPOINT)):
            text = f"missing; score.rewards.{name} asks a judge there (docs/judges.md)"
            yield say.error(f"launch.yaml: score.judge_endpoint: {text}, such as http://127.0.0.1:8000/v1")
        folder = Path(str(reward.settings.get("model")))
        if reward.function == "reward_model" and folder.is_dir():
            try:
                read_model(folder)
            except UserError as error:
                yield from say.refused(error, f"{REWARDS_KEY}.{name}.settings.model: ")
    try:
        if prompts is None:
            yield from map(say.error, settings_problems(score))
            yield say.note(f"{REWARDS_KEY}: not loaded: their columns are not known before `prepare` has run")
            return
        plan = check_rewards(score, judges, prompts.train, prompts.eval)
    except UserError as error:
        yield from say.refused(error)
        return
    if here := [f"{each.name} ({score.rewards[each.name].function})" for each in plan if not each.alone]:
        yield say.ok(f"load with their settings and columns: {', '.join(here)}")
    if any(reward.where for reward in score.rewards.values()) or len(judges) > 1:
        yield from _asked_findings(params, prompts)


def _asked_findings(params: Params, prompts: Prompts) -> Iterator[Finding]:
    """Values that no prompt has, and prompts on which nothing can train, or that no accuracy counts."""
    score, judges = params.score, params.evaluate.judges
    train, held_out = Asked(score, prompts.train), Asked(score, prompts.eval)
    counts = counting(train.masks, train.masks, score.rewards)
    weighted = [counts[name] for name, reward in score.rewards.items() if reward.weight]
    trains = np.logical_or.reduce(weighted) if weighted else np.ones(prompts.train.num_rows, dtype=bool)  # said already
    for name, reward in score.rewards.items():
        for column, wanted in reward.where.items():  # of a list, a misspelt one is missed by nobody else
            known = [*column_values(prompts.train[column]), *column_values(prompts.eval[column])]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if not any(is_one_of(each, value) for each in known):
                    text = f"{value!r}: no prompt has it, in train or eval; {train.hint(column, value)}"
                    yield say.warning(f"{REWARDS_KEY}.{name}.where.{column}: {text}")
    if not trains.all():
        text = f"{_count(~trains, prompts.train, 'training')} are asked for by no reward with a weight: they are"
        remedy = "filter them out, or give them a reward"
        yield say.warning(f"{REWARDS_KEY}: {text} sampled, and nothing trains on them; {remedy}")
    if judges and not (judged := held_out.correct(judges)).all():
        unjudged = _count(~judged, prompts.eval, "eval")
        yield say.note(f"params.yaml: evaluate.correct: {unjudged} count in no accuracy")


def _count(mask: Mask, prompts: pa.Table, kind: str) -> str:
    """How many prompts, and the first of them."""
    first = prompts["prompt_id"][int(mask.argmax())].as_py()
    return f"{int(mask.sum()):,} of {len(mask):,} {kind} prompts (prompt_id={first} first)"


def trial_findings(project: Project, prompts: pa.Table) -> Iterator[Finding]:
    """Rewards on gold answers and on garbage: what a whole round would show too late, in a second.

    What each function made of a few rows, whether groups can have spread, and how long a round would take.
    """
    score = project.params.score
    alone = [one for one in load_plan(score, Asked(score, prompts)) if one.alone]
    for one in alone:
        yield say.note(f"{REWARDS_KEY}.{one.name}: {one.function} was not tried: it needs its model")
    try:
        trials = try_rewards(score, prompts)
    except UserError as error:
        yield from say.refused(error)
        return
    for trial in trials:
        yield from _failures(trial)
        if trial.change:
            yield say.error(trial.change, trial.key)
        elif trial.values:
            if trial.name in project.params.evaluate.judges:
                yield _right(trial)
            elif len(trial.values) > 1:
                yield say.ok(f"gives {trial.shown}", trial.key)
            else:  # a reward of form or length need not tell right from wrong
                text = f"gives {min(trial.values):g} to gold answers and garbage alike: fine for a reward of form"
                yield say.note(f"{text}, not of answers", trial.key)
    if trials and not alone and not _spread(score.rewards, trials):
        text = "every text that was tried gives the same reward in its row: without spread no group can train"
        yield say.warning(f"{REWARDS_KEY}: {text}")
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


def _right(trial: Trial) -> Finding:
    """The reward of evaluate.correct must tell right from wrong."""
    if graded := sorted(trial.values - {0.0, 1.0}):
        text = f"{trial.name}: gave {graded[0]:g}; it must be 1 for a right answer and 0 for a wrong one"
        return say.error(f"params.yaml: evaluate.correct: {text}")
    wrong = max(map(mean, trial.garbage.values()))
    if not trial.gold:
        if wrong > 0:
            return say.error(f"counts garbage as right: {trial.shown}", trial.key)
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


def _spread(rewards: dict[str, Reward], trials: list[Trial]) -> bool:
    """Whether two texts are worth different rewards in at least one row: groups train on differences."""
    for prompt_id in dict.fromkeys(prompt_id for trial in trials for prompt_id in trial.prompt_ids):
        by_text = {
            one.name: {text: row[one.prompt_ids.index(prompt_id)] for text, row in {**one.gold, **one.garbage}.items()}
            for one in trials
            if prompt_id in one.prompt_ids
        }
        texts = set.intersection(*map(set, by_text.values()))
        outcomes = {name: [by_text[name][t] if name in by_text else NOT_ASKED for t in texts] for name in rewards}
        if len({*total_rewards(rewards, outcomes)} - {None}) > 1:
            return True
    return False


def _time(project: Project, trials: list[Trial]) -> Finding:
    """Seconds that the calls of a round take, by the mean of those made here."""
    generate, workers = project.params.generate, project.launch.score.workers
    each = {one.name: one.share * sum(o.seconds for o in one.outcomes) / len(one.outcomes) for one in trials}
    number = generate.most[1] + generate.prompts_per_round * len(generate.given)
    total, slowest = number * sum(each.values()) / workers, max(each, key=lambda name: each[name])
    text = f"about {1000 * sum(each.values()):.2g} ms a completion, most of it '{slowest}': "
    text += f"{total:,.2g} s for {number:,} of a round with {workers} workers"
    if total > LONG_SECONDS:
        return say.warning(f"{text}; raise it where there are more cores", "launch.yaml: score.workers")
    return say.ok(text)


def counting_rewards(name: str) -> str:
    """A digest of what makes the scores of a round, as `score` notes it."""
    changes = read_rounds()[name].overrides.get("score", {})
    score = check(Score, lay_over(read_yaml(PARAMS)["score"], changes), f"{PARAMS}: score")
    return rewards_digest([settings_of(score)], code_of("score"))


def deciding_rewards() -> str:
    """A digest of the rewards where `generate.sample` of any round reads them; else none. They shape the rollouts."""
    content, changes = read_yaml(PARAMS), {name: each.overrides for name, each in read_rounds().items()}
    shared = content["generate"]
    generates = [shared, *(lay_over(shared, own.get("generate", {})) for own in changes.values())]
    if all(generate.get("sample") is None for generate in generates):
        return "none"
    scores = [lay_over(content["score"], own.get("score", {})) for own in ({}, *changes.values())]
    return rewards_digest(scores, code_of("score"))
