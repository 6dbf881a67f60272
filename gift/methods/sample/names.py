"""The ways to sample a round by rewards: what `generate.sample` may say. No loss is imported here, nor torch."""

from typing import Any

from gift.methods.sample import dynamic, posterior, refine, retry
from gift.methods.sample.passes import Sample

SAMPLE: dict[str, Sample[Any]] = {
    "dynamic": dynamic.METHOD,
    "retry": retry.METHOD,
    "refine": refine.METHOD,
    "posterior": posterior.METHOD,
}
