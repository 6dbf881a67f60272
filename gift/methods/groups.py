"""What every method sees and gives back: groups of completions, targets, the forward's outputs, a loss; its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from gift.project.sections import Section

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import Tensor, nn

S = TypeVar("S", bound=Section)
Anchor = Literal["old", "reference"]  # the policy that the round started from, or the reference
Aggregate = Literal["grpo", "dr_grpo", "dapo", "luspo"]  # how a loss of tokens is summed: `Groups.aggregate`
Kind = Literal["completions", "tokens", "pairs"]  # what a shape makes, and a loss takes
Need = Literal[
    "rollout_logprobs", "answers", "domains", "token_weights", "draws"
]  # what of `Groups` is read only where a method needs it


@dataclass(frozen=True)
class Step:
    """Totals of a whole optimizer step, over all ranks; `max_tokens` is the longest that a completion may be.

    num_completions, num_tokens: of what was sampled; given answers count in neither.
    """

    num_groups: int
    num_completions: int
    num_tokens: int
    max_tokens: int
    num_pairs: int = 0


@dataclass(frozen=True)
class Groups:
    """P groups of G places, as known before the forward; N tokens lie flat, completion after completion.

    mask: bool [P, G], a completion that trains stands here. sampled: bool [P, G], False for an answer that was given,
    not sampled. rewards: float [P, G], 0 where masked. components: float [P, G, K], one of each reward function, 0
    where its gate is shut; known: bool [P, G, K], where it gave a value; weights: float [K]; names: K words.
    lengths: int64 [P, G], tokens; 0 in the places that a group has less than the largest. truncated: bool [P, G].
    answers: int64 [P, G], equal final answers of a group share a number, -1 is unknown. domains: P words; solved:
    float [P], share right in earlier rounds, nan if new. draws: float [P, G], from [0, 1), what a loss draws for a
    completion; nan if not read.
    order: int64 [R], the places (0 .. P*G-1) of completions in the order in which their tokens lie; tokens of others
    are not here. ref_logprobs, old_logprobs, rollout_logprobs: float [N], nats, of each token under the reference, the
    policy that the round started from, and the sampler (None: not read). token_weights: float [N], None: all are 1.
    """

    mask: Tensor
    sampled: Tensor
    rewards: Tensor
    components: Tensor
    known: Tensor
    weights: Tensor
    names: tuple[str, ...]
    lengths: Tensor
    truncated: Tensor
    answers: Tensor
    domains: tuple[str | None, ...]
    solved: Tensor
    draws: Tensor
    order: Tensor
    ref_logprobs: Tensor
    old_logprobs: Tensor
    rollout_logprobs: Tensor | None
    token_weights: Tensor | None
    step: Step

    @cached_property
    def completion(self) -> Tensor:
        """int64 [N], the place (0 .. P*G-1) of each token."""
        return self.order.repeat_interleave(self.lengths.flatten()[self.order])

    def sum_tokens(self, values: Tensor) -> Tensor:
        """Sum of a per-token value over each completion: [N] to [P, G]."""
        flat = values.new_zeros(self.mask.numel())
        return flat.index_add(0, self.completion, values).view(self.mask.shape)

    def mean_tokens(self, values: Tensor) -> Tensor:
        """Mean of a per-token value over each completion: [N] to [P, G]."""
        return self.sum_tokens(values) / self.lengths.clamp_min(1)

    def to_tokens(self, values: Tensor) -> Tensor:
        """The value of a token's completion: [P, G] to [N]."""
        return values.flatten()[self.completion]

    def to_places(self, values: Tensor) -> Tensor:
        """Values of the completions of `order`, in its order, in their places: [R, K] to [P, G, K], 0 elsewhere."""
        flat = values.new_zeros(self.mask.numel(), *values.shape[1:])
        return flat.index_copy(0, self.order, values).view(*self.mask.shape, *values.shape[1:])

    def aggregate(self, values: Tensor, how: Aggregate) -> Tensor:
        """This part's share of a loss of tokens [N], of those that train.

        grpo (arXiv 2402.03300): the mean over completions of their means over tokens. dr_grpo (2503.20783): the sum
        over (completions x the longest that one may be). dapo (2503.14476): the mean over the tokens of the step.
        luspo (2602.05261): the mean over completions of their sums.
        """
        values, step = values.where(self.to_tokens(self.mask), 0.0), self.step
        match how:
            case "grpo":
                return self.mean_tokens(values).sum() / step.num_completions
            case "dr_grpo":
                return values.sum() / (step.num_completions * step.max_tokens)
            case "dapo":
                return values.sum() / step.num_tokens
            case "luspo":
                return values.sum() / step.num_completions

    def anchor(self, name: Anchor) -> Tensor:
        """Log-probs [N] of the policy that log-ratios are taken to."""
        return self.ref_logprobs if name == "reference" else self.old_logprobs

    def part(self, rows: Sequence[int], step: Step) -> Groups:
        """The groups of some completions (places in P * G), where these alone train; tokens in the order of `rows`.

        The tokens of all completions must be here, in order.
        """
        group, local, token = _places(self, rows)
        mask = self.mask.new_zeros(len(group) * self.mask.shape[1]).index_fill(0, local, True)
        of_group = ("sampled", "rewards", "components", "known", "lengths", "truncated", "answers", "solved", "draws")
        of_token = ("ref_logprobs", "old_logprobs", "rollout_logprobs", "token_weights")
        taken = {name: getattr(self, name)[group] for name in of_group}
        taken |= {name: None if (all_ := getattr(self, name)) is None else all_[token] for name in of_token}
        domains = tuple(self.domains[index] for index in group.tolist())
        return replace(self, mask=mask.view(len(group), -1), order=local, domains=domains, step=step, **taken)

    def to(self, device: torch.device) -> Groups:
        return _to(self, device)


@dataclass(frozen=True)
class Targets:
    """What a shape makes of the rewards: completions: float [P, G], 0 where masked; tokens: float [N], where a target
    differs inside a completion; pairs: int64 [M, 2], places in P * G, the better and the worse of one group."""

    completions: Tensor
    tokens: Tensor | None = None
    pairs: Tensor | None = None

    def of_tokens(self, groups: Groups) -> Tensor:
        """Each token's target: float [N]."""
        return groups.to_tokens(self.completions) if self.tokens is None else self.tokens

    def part(self, groups: Groups, rows: Sequence[int]) -> Targets:
        """Those of `groups.part(rows)`, where `groups` has all completions; of the pairs those with both ends there."""
        group, local, token = _places(groups, rows)
        pairs = self.pairs
        if pairs is not None:
            place = pairs.new_full((groups.mask.numel(),), -1).index_copy(0, pairs.new_tensor(rows), local)[pairs]
            pairs = place[(place >= 0).all(-1)]
        tokens = None if self.tokens is None else self.tokens[token]
        return Targets(self.completions[group], tokens, pairs)

    def put(self, groups: Groups, rows: Sequence[int], part: Targets) -> Targets:
        """These with the targets of `part(groups, rows)`, made anew, in their places; `rows` ascend, pairs stay."""
        group, _, token = _places(groups, rows)
        completions = self.completions.index_copy(0, group, part.completions)
        if self.tokens is None or part.tokens is None:
            return replace(self, completions=completions)
        return replace(self, completions=completions, tokens=self.tokens.index_copy(0, token, part.tokens))

    def to(self, device: torch.device) -> Targets:
        return _to(self, device)


@dataclass(frozen=True)
class Outputs:
    """What the forward gives; all of it are leaves of a first pass.

    logprobs: float [N], nats. learned: what the method's own head makes of hidden states: [P] (of prompts), or
    [P, G, K] (of completions).
    """

    logprobs: Tensor
    learned: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """This part's share of the step's loss: the parts add up, nobody divides afterwards.

    metrics: of any shape; nan is "not known". The trainer takes means of what is known, over all ranks.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Head(Generic[S]):
    """A module of a method's own on the last hidden states: where it looks, and how it is built.

    where: the mean over the tokens of a prompt, or the state that has seen a completion up to its last token, which it
    predicts. build: hidden size, settings and names of the reward functions to a module from [M, hidden size] to [M],
    or [M, K]. detached: what the head learns does not reach the policy.
    """

    where: Literal["prompt_mean", "last_token"]
    build: Callable[[int, S, tuple[str, ...]], nn.Module]
    detached: bool = False


@dataclass(frozen=True)
class Match(Generic[S]):
    """A loss.

    metrics: names of its own, beside those that the trainer takes for all. coupled: it needs its whole group at once,
    always or under some settings; if not, a large group is cut in one pass. adapt: settings of the next step, from
    this one's metrics. anchor: the policy that the drift of a step is measured from. takes: which targets it reads,
    always or under some settings; shapes: the only ones whose targets mean to it what they should, if not all that make
    these. bounds: what they must lie in. aggregate: how a term of tokens that is added to it (KL) is summed.
    learns_from_zero: a target of 0 is one like any other. given: it has a term for given answers, and does not take
    them for its own samples. makes_targets: it makes them itself of the components, and reads none. least_rewards: how
    many reward functions it wants. needs: see `Need`.
    """

    settings: type[S]
    loss: Callable[[Groups, Targets, Outputs, S], Loss]
    metrics: tuple[str, ...] = ()
    coupled: bool | Callable[[S], bool] = True
    head: Head[S] | None = None
    adapt: Callable[[S, Mapping[str, float | None]], S] | None = None
    anchor: Callable[[S], Anchor] = lambda _: "old"
    takes: tuple[Kind, ...] | Callable[[S], tuple[Kind, ...]] = ("completions",)
    shapes: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    aggregate: Callable[[S], Aggregate] = lambda _: "luspo"
    learns_from_zero: bool = False
    given: bool = False
    makes_targets: bool = False
    least_rewards: int = 1
    needs: tuple[Need, ...] | Callable[[S], tuple[Need, ...]] = ()

    def is_coupled(self, settings: S) -> bool:
        return self.coupled if isinstance(self.coupled, bool) else self.coupled(settings)

    def kinds(self, settings: S) -> tuple[Kind, ...]:
        return self.takes(settings) if callable(self.takes) else self.takes


@dataclass(frozen=True)
class Shape(Generic[S]):
    """Rewards to targets: `within` each group; then `across` the groups of an optimizer step.

    makes: of which kind. of_total: any number may stand for the total reward; if not, it reads the components, or what
    is right. learns_from_zero: a group whose targets are all 0 within it counts in the step, or gets others there.
    least_groups: of a step, for its statistics. given: it makes targets of given answers, too; if not, they are left
    out. needs: see `Need`.
    """

    settings: type[S]
    within: Callable[[Groups, S], Targets]
    across: Callable[[Groups, Targets, S], Targets] | None = None
    makes: Kind = "completions"
    of_total: bool = True
    learns_from_zero: bool = False
    least_groups: int = 1
    given: bool = False
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Select(Generic[S]):
    """Which completions train: bool [P, G]; what is not kept costs no forward. asks_equal: for equal total rewards."""

    settings: type[S]
    keep: Callable[[Groups, S], Tensor]
    asks_equal: Callable[[S], bool] = lambda _: False
    needs: tuple[Need, ...] = ()


def _places(groups: Groups, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows: their groups [P'], ascending; their places [R] in P' * G; indices [N'] of their tokens."""
    row = groups.order.new_tensor(rows)
    size = groups.mask.shape[1]
    group, inverse = (row // size).unique(return_inverse=True)
    lengths = groups.lengths.flatten()
    starts, own = (lengths.cumsum(0) - lengths)[row], lengths[row]
    shift = starts - (own.cumsum(0) - own)
    token = shift.repeat_interleave(own)
    token += token.new_ones(len(token)).cumsum(0) - 1
    return group, inverse * size + row % size, token


T = TypeVar("T", Groups, Targets)


def _to(record: T, device: torch.device) -> T:
    moved = {each.name: getattr(record, each.name) for each in fields(record)}
    return replace(record, **{name: value.to(device) for name, value in moved.items() if hasattr(value, "to")})
