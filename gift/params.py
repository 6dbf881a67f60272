"""The strict, typed sections of params.yaml: every number that changes results, and its rule."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gift.project.sections import Count, Section, check, did_you_mean
from gift.project.yaml import read_yaml
from gift.prompts.settings import Prepare, Where

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Engine = Literal["vllm", "transformers"]
Dtype = Literal["float32", "bfloat16"]
Layout = Literal["shared", "packed", "padded"]  # how completions lie in one forward (gift/logprobs/layouts.py)
Packing = Literal["auto", "shared", "packed", "padded"]  # a layout, or the best that the model takes
Advantages = Literal["group", "gdpo"]  # how rewards become targets (gift/methods/shape/zscore.py)


class ArithmeticBase(Section):
    """The embedded base policy: a small Qwen3 trained from scratch on a mixture of styles (see gift/embedded/base_policy.py)."""

    hidden_size: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    num_problems: Count = 20_000
    steps: Count = 1600
    batch_size: Count = 32
    lr: Positive = 3.0e-3
    worked: Share = 0.40
    guess: Share = 0.52
    malformed: Share = 0.08

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> "ArithmeticBase":
        total = self.worked + self.guess + self.malformed
        if abs(total - 1) > 1e-9:
            raise ValueError(f"worked + guess + malformed must be 1, not {total:g}")
        return self


class Base(Section):
    """The starting policy: 'arithmetic' (made here), a Hugging Face hub id, or a local folder."""

    model: str
    revision: str | None = None
    arithmetic: ArithmeticBase = ArithmeticBase()


class Sampling(Section):
    """What `generate` and `evaluate` share: the engine and vLLM's words for sampling."""

    engine: Engine = "vllm"
    dtype: Dtype = "float32"
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count
    max_model_len: Count | None = None
    long_prompts: Literal["fail", "drop"] = "fail"
    stop_tokens: list[str] = Field(default_factory=list, description="tokens that end a completion, beside the model's")
    groups_per_part: Count = 256


class Generate(Sampling):
    """The group rollouts of a round."""

    prompts_per_round: Count
    group_size: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def whole_distribution(self) -> "Generate":
        if self.top_p != 1:
            raise ValueError(
                "top_p must be 1 for training: the log-probs that the update recomputes are those of the whole "
                "distribution (evaluate.top_p is free)"
            )
        return self


class Reward(Section):
    """One reward function: a name of gift.rewards, or 'rewards/<file>.py:<function>'; its weight and calls."""

    function: str
    weight: float = 1.0
    settings: dict[str, Any] = Field(default_factory=dict)
    signature: Literal["trl", "verl"] = "trl"
    batch: int | Literal["group"] | None = Field(None, description="completions a call; null: the function's own")
    timeout_seconds: Positive | None = Field(None, description="null: the function's own, else score.timeout_seconds")
    only_if: str | None = Field(None, description="another reward: this one counts only where that one is 1")
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


class Reference(Section):
    """Which policy the reference log-probs come from, and the limit of the sampler-trainer audit."""

    policy: Literal["initial", "previous"] = "initial"
    max_mean_gap: Positive = Field(0.02, description="mean |rollout - old| log-prob per token, in nats")


class GiftObjective(Section):
    """The choices inside the GIFT loss (docs/objectives.md)."""

    anchor: Literal["old", "reference"] = "old"
    stats: Literal["detached", "full"] = "detached"
    spread_floor: Positive = Field(1.0, description="least spread of the log-ratio inside a group, in nats")
    beta: Positive = 1.0
    token_reduce: Literal["sum", "mean"] = "sum"
    zero_spread: Literal["mask", "keep"] = "mask"


class Lora(Section):
    """A PEFT adapter that trains in place of the whole model, in PEFT's words.

    There is no dropout: the log-prob of a token would be another one at every look, and the update compares them. There
    is no `bias` and no `modules_to_save`: they change the base model, which is the reference with the adapter off.
    """

    r: Annotated[int, Field(ge=1, le=512, description="the rank; vLLM knows none above 512")]
    lora_alpha: Count = Field(description="the adapter's scale: its output is multiplied by lora_alpha / r")
    target_modules: Literal["all-linear"] | list[str] = "all-linear"

    @field_validator("target_modules", mode="plain")
    @classmethod
    def one_word_or_names(cls, value: Any) -> Any:
        names = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
        if value != "all-linear" and not (names and len(set(value)) == len(value)):
            raise ValueError("must be all-linear, or a list of different names of modules, such as [q_proj, v_proj]")
        return value


class Update(Section):
    """One round of training."""

    objective: Literal["gift"] = "gift"
    advantages: Advantages = "group"
    gift: GiftObjective = GiftObjective()
    lora: Lora | None = Field(None, description="null: the whole model is trained")
    groups_per_step: Count
    epochs: Count = 1
    lr: Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_steps: Count | None = Field(None, description="optimizer steps over all rounds, warm-up included")
    min_lr_ratio: Share = 0.0
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    eps: Positive = 1.0e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive | None = 1.0
    optimizer_state: Literal["carry", "reset"] = "carry"
    dtype: Dtype = Field(description="float32 or bfloat16 (with float32 masters); the reference stage uses it too")
    max_drift: Positive = Field(
        5.0, description="the stage stops when |mean log-ratio to the anchor| passes this, in nats a completion"
    )

    @model_validator(mode="after")
    def schedule_has_an_end(self) -> "Update":
        if self.lr_schedule == "constant":
            if self.schedule_steps is not None or self.min_lr_ratio:
                raise ValueError(
                    "lr_schedule: constant has no schedule_steps or min_lr_ratio; remove them, or use linear or cosine"
                )
        elif self.schedule_steps is None:
            raise ValueError(
                f"schedule_steps: missing; lr_schedule: {self.lr_schedule} needs the number of optimizer steps over "
                "all rounds, after which the learning rate stays at lr * min_lr_ratio"
            )
        elif self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps: {self.schedule_steps}: must be more than warmup_steps ({self.warmup_steps}), which "
                "it includes"
            )
        return self


class Evaluate(Sampling):
    """Held-out accuracy: one greedy completion and `num_samples` sampled ones a prompt."""

    num_samples: Count = 4
    correct: str | list[str] | None = Field(
        description="the reward (a key of score.rewards), or one for each kind of prompts, that is 1 when the answer "
        "is right; null: mean rewards alone"
    )

    @field_validator("correct", mode="plain")
    @classmethod
    def one_or_several_or_null(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        texts = all(isinstance(name, str) for name in names) and len(set(names)) == len(names) > 0
        if value is not None and not texts:
            raise ValueError("must be a key of score.rewards, a list of different ones, or null")
        return value

    @property
    def judges(self) -> list[str]:
        """The rewards that say what is right, each for prompts of its own; none where `correct` is null."""
        return self.correct if isinstance(self.correct, list) else [self.correct] if self.correct else []


class Params(Section):
    """The whole of params.yaml; checked whole, so that a misspelt key is refused before any stage works."""

    seed: Annotated[int, Field(ge=0)]
    prepare: Prepare
    base: Base
    generate: Generate
    score: Score
    reference: Reference
    update: Update
    evaluate: Evaluate

    @model_validator(mode="after")
    def correct_is_a_reward(self) -> "Params":
        for name in self.evaluate.judges:
            if name not in self.score.rewards:
                raise ValueError(
                    f"evaluate.correct: '{name}' is no key of score.rewards ({', '.join(self.score.rewards)})"
                )
        return self


def read_params(path: Path = Path("params.yaml")) -> Params:
    """params.yaml as a typed object, or a `UserError` with every wrong key, its value, the rule and the remedy."""
    return check(Params, read_yaml(path), str(path))
