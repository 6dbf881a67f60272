"""The settings of the whole project: whether its files load, and whether a secret stands in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from gift.doctor.findings import Finding, Theme
from gift.doctor.secrets import secret_lines
from gift.embedded.task import Arithmetic
from gift.methods.choosing import TOO_FEW_REWARDS
from gift.policy.settings import Base
from gift.project.errors import UserError, counted
from gift.project.params import LAUNCH, PARAMS
from gift.project.rounds import ROUNDS, Round, lay_over, read_rounds
from gift.project.sections import Section, check
from gift.project.yaml import read_yaml
from gift.prompts.settings import Prepare
from gift.sampling.settings import Evaluate, Generate, GenerateLaunch, Sampling
from gift.scoring.settings import WATCHED, Score, ScoreLaunch, unknown_judge
from gift.tables.reference import SET_WEIGHTS
from gift.training.deepspeed_config import engine_settings
from gift.training.launcher import processes_problem
from gift.training.reference.settings import Reference, ReferenceLaunch
from gift.training.settings import Update, UpdateLaunch
from gift.upkeep.settings import ReproLaunch
from gift.workers.settings import Workers

say = Theme("settings")
Read = TypeVar("Read")


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    arithmetic: Arithmetic = Arithmetic()
    prepare: Prepare
    base: Base
    generate: Generate
    score: Score
    reference: Reference
    update: Update
    evaluate: Evaluate

    @model_validator(mode="after")
    def correct_is_a_reward(self) -> "Params":
        if wrong := unknown_judge(self.evaluate.judges, self.score):
            raise ValueError(wrong)
        for key, name in self.update.rewards_read.items():
            if name not in self.score.rewards:
                raise ValueError(f"{key}: '{name}' is no key of score.rewards ({', '.join(self.score.rewards)})")
            if name not in self.score.counting:
                raise ValueError(f"{key}: {WATCHED.format(name, name)}")
        return self

    @model_validator(mode="after")
    def there_are_rewards_to_choose_from(self) -> "Params":
        if 0 < (num := len(self.score.counting)) < self.update.match.record.least_rewards:  # without any: rewards.py
            raise ValueError(TOO_FEW_REWARDS.format(self.update.match.name, num))
        return self

    @model_validator(mode="after")
    def tokens_have_weights(self) -> "Params":
        if self.reference.token_weights is None and (method := self.update.who_needs("token_weights")):
            raise ValueError(f"update: {method}: needs what each token weighs; {SET_WEIGHTS}")
        return self

    @model_validator(mode="after")
    def groups_are_large_enough(self) -> "Params":
        for select in self.update.select:
            keep = getattr(select.settings, "keep", 0)
            if keep > self.generate.group_size:
                raise ValueError(
                    f"update.select: {select.name}: keep: {keep}: groups have {self.generate.group_size} completions "
                    "(generate.group_size), so that nothing would be left out; set a smaller one"
                )
        return self

    @property
    def samplings(self) -> dict[str, Sampling]:
        """The sections that sample, by name."""
        return {"generate": self.generate, "evaluate": self.evaluate}


class Launch(Section):
    """The whole of launch.yaml."""

    generate: GenerateLaunch = GenerateLaunch()
    score: ScoreLaunch = ScoreLaunch()
    reference: ReferenceLaunch = ReferenceLaunch()
    workers: Workers = Workers()
    update: UpdateLaunch = UpdateLaunch()
    repro: ReproLaunch = ReproLaunch()


def read_params(path: Path = PARAMS) -> Params:
    return check(Params, read_yaml(path), str(path))


def read_launch(path: Path = LAUNCH) -> Launch:
    return check(Launch, read_yaml(path) if path.exists() else {}, str(path))


@dataclass(frozen=True)
class Project:
    """The settings of a project; `own` holds those of the rounds that differ from params.yaml."""

    params: Params
    launch: Launch
    rounds: dict[str, Round]
    own: dict[str, Params] = field(default_factory=dict)

    def of(self, name: str) -> Params:
        """The settings of a round."""
        return self.own.get(name, self.params)

    def chain(self, name: str) -> list[str]:
        """The rounds from the base (left out) to this one."""
        parent = self.rounds[name].parent
        return [*(self.chain(parent) if parent != "base" else []), name]

    @property
    def longest_chain(self) -> list[str]:
        return max((self.chain(name) for name in self.rounds), key=len)


def read_project() -> tuple[Project | None, list[Finding]]:
    """The settings of the project in the working folder, or None and every file, key and value that is wrong."""
    secrets, findings = list(secret_findings()), list[Finding]()

    def tried(read: Callable[[], Read]) -> Read | None:
        try:
            return read()
        except UserError as error:
            findings.extend(say.refused(error))
            return None

    params, launch, rounds = tried(read_params), tried(read_launch), tried(read_rounds)
    own: dict[str, Params] = {}
    for each in rounds.values() if params and rounds else ():
        changed = tried(partial(_of_round, each)) if each.overrides else None
        own |= {each.name: changed} if changed else {}
    if launch:
        findings += [say.error(problem)] if (problem := processes_problem(launch.update)) else []
        for update in [each.update for each in (params, *own.values()) if each]:
            tried(partial(engine_settings, update, launch.update))
    if not (params and launch and rounds) or findings:
        return None, [*secrets, *findings]
    files = "params.yaml, launch.yaml and rounds.yaml" if LAUNCH.exists() else "params.yaml, rounds.yaml"
    loaded = say.ok(f"{files} load: {counted(len(rounds), 'round')}, {', '.join(list(rounds)[:8])}")
    return Project(params, launch, rounds, own), secrets or [loaded]


def _of_round(each: Round) -> Params:
    """params.yaml with what a round changes in it, checked as strictly."""
    content = read_yaml(PARAMS)
    changed = {name: lay_over(content[name], changes) for name, changes in each.overrides.items()}
    return check(Params, {**content, **changed}, f"{ROUNDS}: rounds.{each.name}", ".")


def secret_findings() -> Iterator[Finding]:
    """These files are in git, params in artifacts too."""
    for path in (PARAMS, LAUNCH, ROUNDS, Path(".dvc/config")):
        remedy = "`dvc remote modify --local`" if path.name == "config" else "the environment (HF_TOKEN, say)"
        text = f"this line looks like a token or a password, and the file is in git; put it into {remedy}, and revoke "
        for number in secret_lines(path):
            yield say.error(f"{text}it if it was ever committed", f"{path}:{number}")
