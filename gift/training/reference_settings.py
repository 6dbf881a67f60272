"""How reference log-probs are made: the section `reference` of params.yaml, that of launch.yaml, and no method."""

from typing import Literal

from pydantic import ConfigDict, Field

from gift.logprobs.settings import Packing
from gift.project.sections import Count, Dtype, Positive, Section


class Reference(Section):
    """Which policy the reference log-probs come from, and the limit of the sampler-trainer audit."""

    policy: Literal["base", "previous"] = "base"
    max_mean_gap: Positive = Field(0.02, description="mean |rollout - old| log-prob per token, in nats")


class Precision(Section):
    """What the stage shares with the section `update`, which it does not read further: a loss concerns it not."""

    model_config = ConfigDict(extra="ignore")

    dtype: Dtype


class ReferenceLaunch(Section):
    tokens_per_batch: Count = 16384
    packing: Packing = "auto"
