"""dynamic: go on sampling until there are enough groups in which something is at stake (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gift.methods.sample.passes import Ask, Got, Passes, Sample, Stream, Wanted
from gift.project.errors import UserError
from gift.project.sections import Count, Section

EPS = 1e-6  # as in gift/methods/statistics.py, which needs torch


class Dynamic(Section):
    """The budget is that of verl's recipe (max_num_gen_batches); the paper's sampling has no end."""

    max_passes: Count = 10
    batch: Annotated[int, Field(ge=1)] | None = Field(None, description="prompts of a pass; null: prompts_per_round")
    correct_from: float | None = Field(
        None, description="the least reward of a right completion; null: any two rewards that differ"
    )


def dynamic(stream: Stream, wanted: Wanted, settings: Dynamic) -> Passes:
    """Prompts of the stream, a batch a pass, until `prompts_per_round` groups have rewards that differ.

    With `correct_from`: until so many have both right and wrong completions. They are kept in the order of the stream;
    fewer where the budget ends first.
    """
    kept: list[Ask] = []
    asked = 0
    for _ in range(settings.max_passes):
        batch = stream.take(min(settings.batch or wanted.prompts, stream.left))
        asked += len(batch)
        found = yield [Ask(prompt, wanted.group_size) for prompt in batch]
        kept += [got.ask for got in found if _is_at_stake(got, settings.correct_from)]
        if len(kept) >= wanted.prompts or not stream.left:
            break
    if not kept:
        raise UserError(
            f"params.yaml: generate.sample.dynamic.max_passes: {settings.max_passes}: of {asked} prompts none has "
            f"{wanted_of(settings)}; look at the rewards, raise it or generate.group_size, or choose prompts "
            "that are neither always nor never solved"
        )
    return kept[: wanted.prompts]


def wanted_of(settings: Dynamic) -> str:
    if settings.correct_from is None:
        return "completions whose rewards differ"
    return f"both rewards of {settings.correct_from:g} or more and less"


def _is_at_stake(got: Got, correct_from: float | None) -> bool:
    if correct_from is not None:
        return 0 < got.num_right(correct_from) < len(got.known)
    return bool(got.known) and max(got.known) - min(got.known) > EPS


def most(wanted: Wanted, settings: Dynamic) -> tuple[int, int]:
    prompts = settings.max_passes * (settings.batch or wanted.prompts)
    return prompts, prompts * wanted.group_size


METHOD = Sample(Dynamic, dynamic, most)
