"""refine: the best of some drafts stands behind the prompt when the group is sampled (iGRPO, arXiv 2602.09000)."""

from __future__ import annotations

from pydantic import Field, field_validator

from gift.methods.sample.passes import Ask, Got, Passes, Sample, Stream, Wanted
from gift.project.sections import Count, Section

SUFFIX = "\n\nA draft, to be taken as guidance and not as truth. Improve on it, do not repeat it:\n{draft}"


class Refine(Section):
    """The paper's number of drafts. How it delimits a draft is not published: the words are ours."""

    drafts: Count = 4
    suffix: str = Field(SUFFIX, description="what is put behind the prompt (of a chat behind its last message)")

    @field_validator("suffix")
    @classmethod
    def holds_the_draft(cls, suffix: str) -> str:
        if suffix.count("{draft}") != 1:
            raise ValueError("must hold {draft} once")
        return suffix


def refine(stream: Stream, wanted: Wanted, settings: Refine) -> Passes:
    """Drafts of the next prompts; then a group of each prompt with its best draft, of equal ones the first.

    A prompt whose drafts all have no reward is asked as it is. The drafts do not train.
    """
    found = yield [Ask(prompt, settings.drafts) for prompt in stream.take(wanted.prompts)]
    asks = [Ask(got.ask.prompt_id, wanted.group_size, _suffix(best(got), settings)) for got in found]
    yield asks
    return asks


def best(got: Got) -> str | None:
    """The completion of the largest reward."""
    rewards = [float("-inf") if reward is None else reward for reward in got.rewards]
    place = max(range(len(rewards)), key=rewards.__getitem__)
    return None if got.rewards[place] is None else got.completions[place]


def _suffix(draft: str | None, settings: Refine) -> str:
    return "" if draft is None else settings.suffix.replace("{draft}", draft)


def most(wanted: Wanted, settings: Refine) -> tuple[int, int]:
    return wanted.prompts, wanted.prompts * (settings.drafts + wanted.group_size)


METHOD = Sample(Refine, refine, most, extends_prompts=True)
