"""How completions are sampled: `generate` and `evaluate` of params.yaml, `generate` of launch.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gift.methods.sample.names import SAMPLE
from gift.methods.sample.passes import Wanted
from gift.project.sections import Choice, Count, Dtype, Positive, Section, choice


class Sampling(Section):
    """What `generate` and `evaluate` share: the engine and vLLM's words for sampling."""

    engine: Literal["vllm", "transformers"] = "vllm"
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
    sample: choice(SAMPLE) | None = Field(  # type: ignore[valid-type]
        None, description="how rewards decide what is sampled; null: they do not, prompts are taken in their order"
    )
    given: list[str] = Field([], description="columns of the prompts whose answers stand beside the sampled ones")

    @field_validator("given")
    @classmethod
    def each_once(cls, given: list[str]) -> list[str]:
        if repeated := [name for name in given if given.count(name) > 1]:
            raise ValueError(f"names '{repeated[0]}' twice; a group needs an answer once")
        return given

    @property
    def most(self) -> tuple[int, int]:
        """How many prompts a round takes from their order at most, and how many completions it samples."""
        if self.sample is None:
            return self.prompts_per_round, self.prompts_per_round * self.group_size
        wanted = Wanted(self.prompts_per_round, self.group_size)
        prompts, completions = self.sample.record.most(wanted, self.sample.settings)
        return int(prompts), int(completions)

    @model_validator(mode="after")
    def sample_fits(self) -> "Generate":
        if self.sample is None:
            return self
        chosen: Choice = self.sample
        key = f"sample.{chosen.name}"
        if self.most[0] < self.prompts_per_round:
            raise ValueError(f"{key}: takes {self.most[0]} prompts, fewer than prompts_per_round: raise its numbers")
        if self.given and chosen.record.extends_prompts:
            raise ValueError(f"given: does not go with {key}: a given answer is one to the prompt as it stands alone")
        if self.given and getattr(chosen.settings, "quotas", False):
            raise ValueError(f"given: does not go with {key}.quotas: beside given answers, groups are equally large")
        return self

    @model_validator(mode="after")
    def whole_distribution(self) -> "Generate":
        if self.top_p != 1:
            reason = "the update recomputes log-probs of the whole distribution (evaluate.top_p is free)"
            raise ValueError(f"top_p must be 1 for training: {reason}")
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


def room_problem(sampling: Sampling, section: str, context: int) -> str | None:
    """No prompt, however short, leaves room for `max_tokens` in a context of so many tokens."""
    if sampling.max_tokens < context:
        return None
    return (
        f"params.yaml: {section}.max_tokens: {sampling.max_tokens}: leaves no room for a prompt in a context of "
        f"{context} tokens; lower it, or raise {section}.max_model_len where the model can"
    )


class GenerateLaunch(Section):
    """The sampler's machine: vLLM's words, and how many engines sample at once."""

    engines: Count | None = Field(
        None, description="on this machine, or in a Ray cluster; null: GPUs / tensor_parallel_size, on a CPU one"
    )
    tensor_parallel_size: Count = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    kv_cache_gib: Annotated[int, Field(ge=1, description="KV cache on a CPU, in GiB")] = 1
    max_num_seqs: Count | None = Field(None, description="sequences at once; null: vLLM's own choice, 256 on a CPU")
    enforce_eager: bool | None = Field(None, description="null: true on a CPU, false on a GPU")
