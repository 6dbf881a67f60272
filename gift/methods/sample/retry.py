"""retry: prompts of which no completion is right are sampled again, some more times (GDEPO, arXiv 2601.06795)."""

from __future__ import annotations

from pydantic import Field

from gift.methods.sample.passes import Ask, Got, Passes, Sample, Stream, Wanted
from gift.project.sections import Count, Section


class Retry(Section):
    """The paper's cap could not be read (UNCERTAIN)."""

    tries: Count = Field(description="how often a failed prompt is sampled again at most")
    correct_from: float = Field(0.5, description="the least reward of a right completion")


def retry(stream: Stream, wanted: Wanted, settings: Retry) -> Passes:
    """A group each of the next prompts; those without a right completion again, until one has or the tries end.

    A later group takes the place of the first where it has a right completion: groups stay equally large.
    """

    def is_solved(got: Got) -> bool:
        return got.num_right(settings.correct_from) > 0

    found = yield [Ask(prompt, wanted.group_size) for prompt in stream.take(wanted.prompts)]
    kept = {got.ask.prompt_id: got.ask for got in found}
    failed = [got.ask for got in found if not is_solved(got)]
    for _ in range(settings.tries):
        if not failed:
            break
        found = yield [Ask(ask.prompt_id, ask.count) for ask in failed]
        kept |= {got.ask.prompt_id: got.ask for got in found if is_solved(got)}
        failed = [got.ask for got in found if not is_solved(got)]
    return list(kept.values())


def most(wanted: Wanted, settings: Retry) -> tuple[int, int]:
    return wanted.prompts, wanted.prompts * wanted.group_size * (1 + settings.tries)


METHOD = Sample(Retry, retry, most)
