"""What every way to sample by rewards sees and gives back: a stream of prompts, passes of asks, and what they got.

A way is a generator: it yields a pass, a list of asks of different prompts, and is sent what each of them got; it
returns the asks whose completions are the round's rollouts, one a prompt. All others were sampled and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gift.methods.sample.epochs import take_prompts
from gift.project.sections import Section

S = TypeVar("S", bound=Section)


class Stream:
    """The prompts in the order in which rounds consume them, from where the round before stopped; none comes twice.

    `position` is the place in the stream after all that was taken.
    """

    def __init__(self, prompt_ids: list[str], start: int, seed: int) -> None:
        self._prompt_ids, self._start, self.seed = prompt_ids, start, seed
        self.position = start
        self._taken = 0

    @property
    def left(self) -> int:
        return len(self._prompt_ids) - self._taken

    def take(self, count: int) -> list[str]:
        """The next `count` prompts; a `UserError` where there are not so many left."""
        taken, self.position = take_prompts(self._prompt_ids, self._start, self._taken + count, self.seed)
        new = taken[self._taken :]
        self._taken += count
        return new


@dataclass(frozen=True, eq=False)
class Ask:
    """`count` completions of a prompt; `suffix` is a text that stands behind the prompt.

    An ask is equal to itself alone: a prompt may be asked again with the same numbers.
    """

    prompt_id: str
    count: int
    suffix: str = ""


@dataclass(frozen=True)
class Got:
    """What came of an ask: its completions and their rewards; None: a reward failed, or none counts."""

    ask: Ask
    completions: list[str]
    rewards: list[float | None]

    @property
    def known(self) -> list[float]:
        return [reward for reward in self.rewards if reward is not None]

    def num_right(self, least: float) -> int:
        """How many completions have a reward of at least `least`."""
        return sum(reward >= least for reward in self.known)


@dataclass(frozen=True)
class Wanted:
    """What a round is to have: groups of so many completions of so many prompts."""

    prompts: int
    group_size: int


Passes = Generator[list[Ask], list[Got], list[Ask]]


@dataclass(frozen=True)
class Sample(Generic[S]):
    """A way to sample: its settings, and the passes that it makes.

    most: how many prompts it takes at most, and how many completions it samples. takes_most: it always takes so many
    prompts. extends_prompts: what it keeps may answer more than the prompt.
    """

    settings: type[S]
    passes: Callable[[Stream, Wanted, S], Passes]
    most: Callable[[Wanted, S], tuple[int, int]]
    takes_most: bool = False
    extends_prompts: bool = False
