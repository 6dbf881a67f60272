"""Whether every reward function is found, imports, and takes its settings and the columns that the prompts have."""

import inspect
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.doctor.asked import asked_findings
from gift.doctor.findings import Finding, refusal
from gift.doctor.model import read_model
from gift.doctor.prompts import Prompts
from gift.doctor.settings import Project
from gift.project.errors import UserError
from gift.rewards.models.judge import judge
from gift.rewards.models.judge_client import ENDPOINT
from gift.rewards.names import DEFAULTS, REWARDS
from gift.rewards.signature import wrong_settings
from gift.scoring.loading import Loaded, try_without_rows
from gift.scoring.plan import load_plan
from gift.scoring.settings import Reward
from gift.scoring.workers.pool import RewardPool
from gift.tables.prompts import prompt_column

THEME = "rewards"
# Of our functions those that give more than 0 and 1, so that none of them tells right from wrong.
GRADED = ("cosine_length", "judge", "length", "ngram_diversity", "overlong", "repetition", "reward_model")


def reward_findings(project: Project, prompts: Prompts | None) -> list[Finding]:
    """Names and weights; where columns are known, which prompts are whose, and what a worker says that loads them."""
    score = project.params.score
    findings = _weight_findings(project)
    for name in project.params.evaluate.judges:
        if score.rewards[name].function in GRADED:
            text = f"{name}: {score.rewards[name].function} is graded; it must be 1 where the answer is right, else 0"
            findings.append(Finding("error", THEME, text, "params.yaml: evaluate.correct"))
    for name, reward in score.rewards.items():
        if is_alone(reward):
            findings += _model_findings(project, name, reward, prompts)
    asked = asked_findings(project, prompts) if prompts else []
    findings += asked
    if any(finding.level == "error" for finding in asked):
        return findings
    try:
        plan = load_plan(score, prompts.train if prompts else None)
        if prompts is None:
            for name, reward in score.rewards.items():
                findings += [] if is_alone(reward) else _setting_findings(name, reward)
            text = "not loaded: the columns that they get are not known before `prepare` has run"
            return [*findings, Finding("note", THEME, text, "params.yaml: score.rewards")]
        here = [one for one in plan if not one.alone]
        with RewardPool(here, 1, score.timeout_seconds, score.memory_gib) as pool:
            pool.load()
    except UserError as error:
        return [*findings, refusal(THEME, error)]
    named = ", ".join(f"{one.name} ({score.rewards[one.name].function})" for one in here)
    return [*findings, *([Finding("ok", THEME, f"load with their settings and columns: {named}")] if here else [])]


def is_alone(reward: Reward) -> bool:
    """Whether it holds a model or asks a server, so that a check does without it."""
    return reward.function in DEFAULTS and DEFAULTS[reward.function].alone


def arguments(reward: Loaded, prompts: pa.Table, row: int, text: str) -> dict[str, list[Any]]:
    """What a reward function gets for a prompt and a completion's text, as lists of one row."""
    known = prompts.slice(row, 1).to_pylist()[0]
    known["prompts"] = known.pop(prompt_column(prompts))
    chat = not isinstance(known["prompts"], str)
    known["completions"] = [{"role": "assistant", "content": text}] if chat else text
    known["completion_ids"] = list(range(len(text)))  # as many as there would be at most
    return {name: [known.get(name, "")] for name in reward.arguments}


def _model_findings(project: Project, name: str, reward: Reward, prompts: Prompts | None) -> list[Finding]:
    """Of a reward that is not loaded here: its settings, the judge's endpoint, the reward model's folder."""
    where = f"params.yaml: score.rewards.{name}.settings"
    findings = _setting_findings(name, reward)
    if findings:
        return findings
    if reward.function == "judge":
        wrong = _wrong_judge(name, reward, prompts)
        if wrong:
            return [refusal(THEME, UserError(f"params.yaml: score.rewards.{name}.{wrong}"))]
    if reward.function == "judge" and not (project.launch.score.judge_endpoint or os.environ.get(ENDPOINT)):
        text = f"missing; score.rewards.{name} asks a judge there, such as http://127.0.0.1:8000/v1 (docs/judges.md)"
        return [Finding("error", THEME, text, "launch.yaml: score.judge_endpoint")]
    folder = Path(str(reward.settings["model"]))
    if reward.function == "reward_model" and folder.is_dir():
        try:
            read_model(folder)
        except UserError as error:
            return [refusal(THEME, UserError(f"{where}.model: {error.message}"))]
    return []


def _wrong_judge(name: str, reward: Reward, prompts: Prompts | None) -> str | None:
    """What a judge says of its settings when it is called with no rows, which asks nothing; None where it takes them.

    Where the columns are not known yet, those that it names are there.
    """
    if prompts:
        columns = [column for column in prompts.train.column_names if column != prompt_column(prompts.train)]
    else:
        named = (reward.settings.get(key) for key in ("reference_column", "against_column"))
        columns = list(dict.fromkeys(["prompt_id", *filter(None, named)]))
    arguments = ["prompts", "completions", "completion_ids", *columns]
    return try_without_rows(Loaded(name, None, reward.function, reward.settings, arguments), judge)


def _setting_findings(name: str, reward: Reward) -> list[Finding]:
    """Of one of ours: its settings by name and type, for which no column needs to be known."""
    where = f"params.yaml: score.rewards.{name}"
    if reward.function not in REWARDS:
        return []
    parameters = inspect.signature(REWARDS[reward.function]).parameters
    for key in reward.settings:
        if key not in parameters:
            return [Finding("error", THEME, f"{reward.function} has no such setting", f"{where}.settings.{key}")]
    wrong = wrong_settings(REWARDS[reward.function], reward.settings)
    return [refusal(THEME, UserError(f"{where}.{wrong}"))] if wrong else []


def _weight_findings(project: Project) -> list[Finding]:
    rewards = project.params.score.rewards
    if not any(reward.weight for reward in rewards.values()):
        text = "every weight is 0: all rewards are equal, and no group can train; give one a weight"
        return [Finding("error", THEME, text, "params.yaml: score.rewards")]
    text = "{:g}: trains away from what evaluate.correct counts as right"
    return [
        Finding("warning", THEME, text.format(rewards[name].weight), f"params.yaml: score.rewards.{name}.weight")
        for name in project.params.evaluate.judges
        if rewards[name].weight < 0
    ]
