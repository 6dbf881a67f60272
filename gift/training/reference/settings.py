"""How reference log-probs are made: the section `reference` of params.yaml, that of launch.yaml, and no method."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gift.logprobs.settings import Kernels, Packing
from gift.project.sections import Count, Dtype, Positive, Section, Share, choice
from gift.training.final_answer import ANSWER


class Oar(Section):
    """How much the final answer depends on a token before it, and what it then weighs (OAR, arXiv 2601.07408).

    Where nothing else is said the numbers are the authors'.
    """

    answer: choice(ANSWER) = Field(description="where a completion has its final answer, as update.final_answer")  # type: ignore[valid-type]
    at: Literal["first", "mean", "last"] = Field(
        "mean", description="whose distribution: of the answer's first token, of them all, of what follows the last"
    )
    quantile: Share = Field(0.25, description="the share of tokens that weigh less than 1")
    floor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="the least weight")
    beta: Annotated[float, Field(ge=0)] = Field(1.0, description="the largest weight is 1 + beta")
    sum_to_length: bool = Field(False, description="scale the weights, so that their mean is 1")


class OarP(Oar):
    """By perturbation: each token in turn is replaced by padding."""

    at: Literal["first", "mean", "last"] = "first"
    max_tokens: Count | None = Field(None, description="where more stand before the answer, all weigh 1")


class OarG(Oar):
    """By the gradient, at embeddings with a little noise: at the embeddings themselves it would be 0."""

    noise: Positive = Field(1e-3, description="standard deviation, of each number of an embedding")


@dataclass(frozen=True)
class Weighting:
    """A way to weigh tokens: `settings` alone say which, for what does the work imports torch."""

    settings: type[Oar]


TOKEN_WEIGHTS = {"oar_p": Weighting(OarP), "oar_g": Weighting(OarG)}


class Reference(Section):
    """Which policy the reference log-probs come from, and the limit of the sampler-trainer audit."""

    policy: Literal["base", "previous"] = "base"
    max_mean_gap: Positive = Field(0.02, description="mean |rollout - old| log-prob per token, in nats")
    token_weights: choice(TOKEN_WEIGHTS) | None = Field(  # type: ignore[valid-type]
        None, description="what each token weighs, where a method of `update` asks for that"
    )


class Precision(Section):
    """What the stage shares with the section `update`, which it does not read further: a loss concerns it not."""

    model_config = ConfigDict(extra="ignore")

    dtype: Dtype


class ReferenceLaunch(Kernels):
    """The machine of the log-prob pass: workers, each with the policies on a GPU of its own."""

    processes: Count | None = Field(
        None, description="on this machine, or in a Ray cluster; null: one for each GPU, on a CPU one"
    )
    tokens_per_batch: Count = 16384
    packing: Packing = "auto"
