"""How a round trains: the section `update` of params.yaml, and that of launch.yaml."""

from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gift.logprobs.settings import Kernels, Packing
from gift.methods.groups import Need
from gift.methods.names import MADE, MATCH, SELECT, SHAPE
from gift.methods.objective import Correction, Kl, Objective
from gift.policy.settings import Lora
from gift.project.sections import Choice, Count, Dtype, Positive, Section, Share, choice
from gift.training.final_answer import ANSWER
from gift.training.memory import Checkpointing

SUPPLIES: dict[Need, tuple[str, str]] = {
    "answers": ("final_answer", "the final answers; set final_answer, such as final_answer: {boxed: {}}"),
}
"""The key without which a need is not met, and what to say then."""


def needs_of(method: Choice) -> tuple[Need, ...]:
    """What of the groups one method reads, under its settings."""
    needs = method.record.needs
    return tuple(needs(method.settings) if callable(needs) else needs)


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


class Update(Section):
    """One round of training."""

    select: list[choice(SELECT)] = Field([], description="methods that leave completions out, in order")  # type: ignore[valid-type]
    shape: choice(SHAPE) = Field({"zscore": {}}, validate_default=True)  # type: ignore[valid-type]
    match: choice(MATCH) = Field({"gift": {}}, validate_default=True)  # type: ignore[valid-type]
    kl: Kl | None = Field(None, description="a KL term beside the loss")
    kl_in_reward: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="this x (old - reference log-prob) of a completion is taken off its reward, as in RLOO",
    )
    correction: Correction | None = Field(None, description="weights for what the sampler's numbers differ from ours")
    final_answer: choice(ANSWER) | None = Field(  # type: ignore[valid-type]
        None, description="where a completion has its final answer, for methods that compare answers"
    )
    zero_targets: Literal["drop", "keep"] = Field("drop", description="groups all of whose targets are 0")
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

    @property
    def objective(self) -> Objective:
        return Objective(self.match.record, self.kl, self.correction)

    @property
    def needs(self) -> set[Need]:
        """What of the groups is read for these methods alone."""
        needs = {need for _, method in self._methods for need in needs_of(method)}
        return needs | {"rollout_logprobs"} if self.correction else needs

    def who_needs(self, need: Need) -> str | None:
        """The first method that reads something of the groups, behind its axis."""
        return next((f"{axis}: {method.name}" for axis, method in self._methods if need in needs_of(method)), None)

    @property
    def find_answer(self) -> Callable[[str], Hashable | None] | None:
        """What finds the final answer in a completion."""
        chosen: Any = self.final_answer
        return None if chosen is None else lambda text: chosen.record.find(text, chosen.settings)

    @property
    def rewards_read(self) -> dict[str, str]:
        """The reward functions that methods read by name, each behind its key."""
        found = {}
        for axis, method in self._methods:
            for key in ("component", "correct"):
                if (name := getattr(method.settings, key, None)) is not None:
                    found[f"update.{axis}.{method.name}.{key}"] = name
        return found

    @property
    def _methods(self) -> list[tuple[str, Any]]:
        """The chosen methods, each with its axis."""
        return [*(("select", each) for each in self.select), ("shape", self.shape), ("match", self.match)]

    @model_validator(mode="after")
    def shape_fits_match(self) -> "Update":
        shape, match = self.shape.record, self.match.record
        kinds = match.kinds(self.match.settings)
        fitting = match.shapes or tuple(
            name for name, each in SHAPE.items() if each.makes in kinds and (match.given or not each.given)
        )
        if shape.makes not in kinds:
            set_so = ", as it is set," if callable(match.takes) else ""
            raise ValueError(
                f"shape: {self.shape.name}: makes {MADE[shape.makes]}, but match: {self.match.name}{set_so} takes "
                f"{' or '.join(MADE[kind] for kind in kinds)}; set shape to {_one_of(fitting)}"
            )
        if shape.given and not match.given:
            fitting = tuple(
                name
                for name, each in MATCH.items()
                if each.given
                and shape.makes in each.kinds(None)
                and (not each.shapes or self.shape.name in each.shapes)
            )
            raise ValueError(
                f"shape: {self.shape.name}: makes targets of given answers, which match: {self.match.name} would train "
                f"on as if they had been sampled; set match to {_one_of(fitting)}"
            )
        if match.shapes and self.shape.name not in match.shapes:
            raise ValueError(
                f"shape: {self.shape.name}: match: {self.match.name} is made for {' or '.join(match.shapes)}; set it"
            )
        if match.makes_targets and (self.shape.name, self.shape.settings) != ("zscore", SHAPE["zscore"].settings()):
            raise ValueError(
                f"shape: {self.shape.name}: match: {self.match.name} makes its targets itself; remove shape, or set "
                "it to zscore: {}"
            )
        return self

    @model_validator(mode="after")
    def methods_fit(self) -> "Update":
        shape, match = self.shape.record, self.match.record
        if match.learns_from_zero and self.zero_targets == "drop":
            raise ValueError(
                f"zero_targets: drop: match: {self.match.name} learns from targets of 0, too; set zero_targets: keep"
            )
        if shape.learns_from_zero and self.zero_targets == "drop":
            raise ValueError(
                f"zero_targets: drop: shape: {self.shape.name} compares groups, and one of equal rewards counts, too; "
                "set zero_targets: keep"
            )
        if self.correction and "rollout_logprobs" in needs_of(self.match):
            raise ValueError(
                f"correction: match: {self.match.name} weighs by the sampler's log-probs itself; remove one"
            )
        if self.kl_in_reward and (match.makes_targets or not shape.of_total):
            reader = f"match: {self.match.name}" if match.makes_targets else f"shape: {self.shape.name}"
            raise ValueError(
                f"kl_in_reward: {self.kl_in_reward:g}: {reader} reads the rewards as they were given; use update.kl"
            )
        asking = [each.name for each in self.select if each.record.asks_equal(each.settings)]
        if self.kl_in_reward and asking:
            raise ValueError(
                f"kl_in_reward: {self.kl_in_reward:g}: select: {asking[0]}: after it no two rewards of a group are "
                f"equal; set {asking[0]}: component to a reward function, or use update.kl"
            )
        if self.groups_per_step < shape.least_groups:
            raise ValueError(
                f"groups_per_step: {self.groups_per_step}: shape: {self.shape.name} compares the groups of a step; "
                f"set {shape.least_groups} or more"
            )
        return self

    @model_validator(mode="after")
    def needs_are_met(self) -> "Update":
        for axis, method in self._methods:
            for need in needs_of(method):
                key, what = SUPPLIES.get(need, ("", ""))
                if key and getattr(self, key) is None:
                    raise ValueError(f"{axis}: {method.name}: needs {what}")
        for need, (key, _) in SUPPLIES.items():
            if need not in self.needs and getattr(self, key) is not None:
                raise ValueError(f"{key}: no method that is chosen reads it; remove it")
        return self

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


class UpdateLaunch(Kernels):
    """The trainer's machine. Results are the same for every choice here, up to float rounding."""

    launcher: Literal["in_process", "deepspeed", "srun"] = "in_process"
    num_processes: Count = 1
    launcher_args: list[str] = Field(default_factory=list, description="e.g. ['--hostfile', 'hosts']")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(None, description="null: 0 with float32, 1 with bfloat16")
    tokens_per_batch: Count = 16384
    packing: Packing = Field("auto", description="shared prompts, packed or padded rows; auto: shared where it can")
    gradient_checkpointing: Checkpointing = Field(
        False,
        description="recompute in backward: nothing, a whole layer, or (selective) all but products and attention",
    )
    offload_optimizer: bool = False
    offload_parameters: bool = False
    checkpoint_every_steps: Count = 8
    timeout_minutes: Positive = Field(30.0, description="how long a rank waits for another before it ends")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="further keys of DeepSpeed's configuration")
