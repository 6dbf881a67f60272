"""How completions are scored: the section `score` of params.yaml, and that of launch.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gift.project.errors import UserError
from gift.project.sections import Count, Positive, Section, Share, did_you_mean
from gift.tables.counting import names_that_count
from gift.tables.where import Where

WATCHED = "'{}' has weight 0 and is only watched; give score.rewards.{} the key `in_update: true`"


class Reward(Section):
    """One reward function: a name of gift.rewards, or 'rewards/<file>.py:<function>'; its weight and calls."""

    function: str
    weight: Annotated[float, Field(ge=-1e15, le=1e15)] = 1.0
    settings: dict[str, Any] = Field(default_factory=dict)
    signature: Literal["trl", "verl"] = "trl"
    batch: int | Literal["group"] | None = Field(None, description="completions a call; null: the function's own")
    timeout_seconds: Positive | None = Field(None, description="null: the function's own, else score.timeout_seconds")
    only_if: str | None = Field(None, description="another reward: this one counts only where that one is 1")
    in_update: bool = Field(False, description="the update reads it by name (component, correct), also at weight 0")
    where: Where = Field(
        default_factory=dict, description="prompt column: a value, or a list of values; else not asked"
    )

    @field_validator("batch", mode="plain")
    @classmethod
    def number_group_or_null(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (number or value in ("group", None)):
            raise ValueError("must be a number of completions (1 or more), group, or null")
        return value


class Score(Section):
    """The explicit rewards: `reward` is the weighted sum of the components."""

    rewards: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Reward], Field(min_length=1)]
    timeout_seconds: Positive = 10.0
    memory_gib: Positive = Field(4.0, description="private memory of a worker at most, in GiB")
    max_failed_share: Share = 0.01

    @property
    def counting(self) -> dict[str, Reward]:
        """The rewards that an update may read; those of weight 0 are watched: no total and no update knows of them."""
        names = names_that_count({name: reward.model_dump() for name, reward in self.rewards.items()})
        return {name: self.rewards[name] for name in names}

    @model_validator(mode="after")
    def names_are_free(self) -> "Score":
        for name in self.rewards:
            if name in ("prompt_id", "sample", "reward") or name.endswith(("_status", "_message")):
                raise ValueError(f"rewards.{name}: the scores table has a column of that name; choose another key")
        return self

    @model_validator(mode="after")
    def gates_are_other_ungated_rewards(self) -> "Score":
        for name, reward in self.rewards.items():
            gate = reward.only_if
            if gate is None:
                continue
            where = f"rewards.{name}.only_if: '{gate}'"
            if gate not in self.rewards:
                raise ValueError(f"{where}: no such reward; {did_you_mean(gate, list(self.rewards))}")
            if gate == name:
                raise ValueError(f"{where}: a reward cannot be its own gate; name another, or remove only_if")
            if self.rewards[gate].only_if is not None:
                raise ValueError(f"{where}: has a gate itself ({self.rewards[gate].only_if}); name one without only_if")
        return self


class ScoreLaunch(Section):
    """The workers of rewards, and where the judge answers."""

    workers: Count = 2
    processes: Count | None = Field(
        None, description="that each have such workers, and models on a GPU; null: with a reward_model one for each GPU"
    )
    judge_endpoint: str | None = Field(None, description="e.g. http://127.0.0.1:8000/v1")


def unknown_judge(judges: list[str], score: Score) -> str | None:
    """What is wrong where `evaluate.correct` names a reward that `score` does not have."""
    for name in judges:
        if name not in score.rewards:
            return f"evaluate.correct: '{name}' is no key of score.rewards ({', '.join(score.rewards)})"
    return None


def refuse_judges(judges: list[str], score: Score) -> None:
    if wrong := unknown_judge(judges, score):
        raise UserError(f"params.yaml: {wrong}")
