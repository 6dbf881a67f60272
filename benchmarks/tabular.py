"""A tabular policy whose aligned optimum is known in closed form, trained with the project's own losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift.methods.choosing import Chosen, choose
from gift.methods.groups import Groups, Outputs, Step, Targets
from gift.methods.making import groups_of
from gift.project.seeds import seed_of
from gift.training.settings import Update

Rewards = Literal["normal", "binary"]
SHARE_RIGHT = 0.25
"""Of binary rewards: the chance that a completion is right."""
SHARPEST = 1e6
"""The largest 1/b at which the nearest aligned optimum is looked for, a nat per unit of reward."""
HALVINGS = 60


@dataclass(frozen=True)
class Problem:
    """M prompts with K completions of one token each: log-probs of the reference, in nats, and rewards, float64 [M, K].

    The prompts of several seeds stand one after another: seed i has the prompts i * M/S to (i + 1) * M/S - 1.
    """

    reference: Tensor
    rewards: Tensor
    num_seeds: int = 1

    def optimum(self, b: float) -> Tensor:
        """Log-probs [M, K] of pi_ref exp(r / b) / Z: the most E[r] - b KL(pi, pi_ref) (arXiv 2305.18290, eq. 4)."""
        return self.tilted(torch.full((len(self.rewards),), 1 / b, dtype=self.rewards.dtype))

    def tilted(self, sharpness: Tensor) -> Tensor:
        """Log-probs [M, K] of pi_ref exp(sharpness r) / Z; sharpness: [M], 1/b of each prompt."""
        return (self.reference + sharpness.unsqueeze(-1) * self.rewards).log_softmax(-1)

    def expected_reward(self, logprobs: Tensor) -> Tensor:
        """E[r] of each prompt under a policy: [M, K] to [M]."""
        return (logprobs.exp() * self.rewards).sum(-1)

    def by_seed(self, values: Tensor) -> Tensor:
        """Values of the prompts, [M], as a row a seed: [S, M / S]."""
        return values.view(self.num_seeds, -1)


def problem_of(seeds: Sequence[int], prompts: int, completions: int, rewards: Rewards) -> Problem:
    """Prompts of each seed: logits of the reference ~ N(0, 1); rewards ~ N(0, 1), or 1 with a chance, else 0."""
    references, values = [], []
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed_of("closed_form", rewards, seed))
        references.append(torch.randn(prompts, completions, generator=draw, dtype=torch.float64).log_softmax(-1))
        noise = torch.randn if rewards == "normal" else torch.rand
        made = noise(prompts, completions, generator=draw, dtype=torch.float64)
        values.append(made if rewards == "normal" else (made < SHARE_RIGHT).double())
    return Problem(torch.cat(references), torch.cat(values), len(seeds))


def kl(logprobs: Tensor, others: Tensor) -> Tensor:
    """KL(policy, other) of each prompt in nats: [M, K], [M, K] to [M]."""
    return (logprobs.exp() * (logprobs - others)).sum(-1)


def nearest(problem: Problem, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The least KL(pi, pi_ref exp(r/b)/Z) over b > 0 of each prompt, in nats, and 1/b there: [M], [M].

    In 1/b this KL is convex, and its derivative is the expected reward at 1/b less that of the policy: the nearest
    optimum is the one of equal expected reward. It is found by halving 1/(1 + b), at 1/b from 0 to `SHARPEST`; a policy
    that earns less than the reference is nearest to it (0). Where all rewards are equal, every b is as near: nan.
    """
    # Rewards less their largest: so what a nearly greedy policy lacks is not lost in rounding.
    most = problem.rewards.max(-1, keepdim=True).values
    lacking = Problem(problem.reference, problem.rewards - most)
    earned = lacking.expected_reward(logprobs)
    low = torch.zeros_like(earned)
    high = torch.full_like(earned, SHARPEST / (1 + SHARPEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = lacking.expected_reward(lacking.tilted(middle / (1 - middle))) < earned
        low, high = middle.where(below, low), high.where(below, middle)
    sharpness = low / (1 - low)
    same = (problem.rewards == most).all(-1)
    return kl(logprobs, lacking.tilted(sharpness)), sharpness.masked_fill(same, float("nan"))


@dataclass(frozen=True)
class Measured:
    """Numbers of a policy, each [S], a mean over the prompts of a seed: KL to the optimum at the given beta, to the
    nearest aligned one, and to the reference, in nats; the expected reward; and the median b of the nearest."""

    to_optimum: Tensor
    to_aligned: Tensor
    to_reference: Tensor
    reward: Tensor
    nearest_b: Tensor


def measure(problem: Problem, logprobs: Tensor, beta: float) -> Measured:
    """The numbers of a policy, [M, K] log-probs."""
    to_aligned, sharpness = nearest(problem, logprobs)
    means = (
        problem.by_seed(values).mean(-1)
        for values in (
            kl(logprobs, problem.optimum(beta)),
            to_aligned,
            kl(logprobs, problem.reference),
            problem.expected_reward(logprobs),
        )
    )
    return Measured(*means, problem.by_seed(1 / sharpness).nanmedian(-1).values)


class Policy:
    """Logits [M, K] that begin at the reference; of a method with a head a learned log Z [M], from 0; their Adam."""

    def __init__(self, problem: Problem, update: Update) -> None:
        self.logits = problem.reference.clone().requires_grad_()
        self.log_z = torch.zeros(len(self.logits), dtype=self.logits.dtype, requires_grad=True)
        self.optimizer = torch.optim.AdamW(
            [self.logits, self.log_z], update.lr, update.betas, update.eps, update.weight_decay
        )

    def logprobs(self) -> Tensor:
        return self.logits.log_softmax(-1)


def train(problem: Problem, update: Update, rounds: int, group_size: int, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Log-probs [M, K] of the policy after 0, 1, ... `rounds` rounds; each draws a group of every prompt from it.

    Completions are drawn with replacement. What is drawn depends on the seed, the round and the policy: two methods
    of one seed draw with the same random numbers.
    """
    policy = Policy(problem, update)
    prompts = len(problem.rewards) // len(seeds)
    draws = [torch.Generator().manual_seed(seed_of("closed_form", "draws", seed)) for seed in seeds]
    yield policy.logprobs().detach()
    for _ in range(rounds):
        numbers = [torch.rand(prompts, group_size, generator=draw, dtype=torch.float64) for draw in draws]
        with torch.no_grad():
            cumulated = policy.logprobs().exp().cumsum(-1)
            # The last sum may round to less than 1: what lies beyond it is the last completion.
            completions = torch.searchsorted(cumulated, torch.cat(numbers)).clamp_max(cumulated.shape[-1] - 1)
        train_round(problem, policy, update, completions)
        yield policy.logprobs().detach()


def train_round(problem: Problem, policy: Policy, update: Update, completions: Tensor) -> None:
    """`update.epochs` optimizer steps, each on all groups of the round; completions: int64 [M, G], of each prompt.

    As in a round of the pipeline: choose, then the targets across the groups of a step, then the loss. Gradients are
    not clipped. The prompts of all seeds stand in one step, whose divisors are the mean of theirs: Adam steps with each
    logit by itself, so that seeds do not meet. Targets across groups are made seed by seed.
    """
    with torch.no_grad():
        old = policy.logprobs().gather(-1, completions)
    groups = groups_of(
        problem.rewards.gather(-1, completions),
        torch.ones_like(completions, dtype=torch.bool),
        torch.ones_like(completions),
        max_tokens=1,
        ref_logprobs=problem.reference.gather(-1, completions).flatten(),
        old_logprobs=old.flatten(),
        rollout_logprobs=old.flatten(),
    )
    chosen = choose(groups, update)
    if not chosen.indices:
        return
    prompts = len(completions) // problem.num_seeds
    by_seed = [[i for i in chosen.indices if i // prompts == seed] for seed in range(problem.num_seeds)]
    targets = _across(chosen, update, by_seed)
    rows = _rows(chosen, chosen.indices)
    part = chosen.groups.part(rows, _totals(chosen, chosen.indices, problem.num_seeds))
    of_part = targets.part(chosen.groups, rows)
    place = torch.tensor(chosen.indices).repeat_interleave(part.mask.sum(-1))  # the prompt of each token
    token = place * policy.logits.shape[-1] + completions.flatten()[rows]
    for _ in range(update.epochs):
        learned = policy.log_z[chosen.indices] if update.match.record.head else None
        outputs = Outputs(policy.logprobs().flatten()[token], learned)
        loss = update.objective.loss(part, of_part, outputs, update.match.settings)
        policy.optimizer.zero_grad()
        loss.value.backward()
        policy.optimizer.step()


def _rows(chosen: Chosen, indices: Sequence[int]) -> list[int]:
    """Places of the completions that train, of some groups."""
    inside = torch.zeros_like(chosen.groups.mask)
    inside[list(indices)] = chosen.groups.mask[list(indices)]
    return inside.flatten().nonzero().squeeze(-1).tolist()


def _totals(chosen: Chosen, indices: Sequence[int], num_seeds: int) -> Step:
    """Totals of some groups of one-token completions: the mean over the seeds that are in them, rounded down."""
    mask, pairs = chosen.groups.mask[list(indices)], chosen.targets.pairs
    count = max(1, int(mask.sum()) // num_seeds)
    num_pairs = 0 if pairs is None else max(1, len(pairs) // num_seeds)
    return Step(max(1, len(indices) // num_seeds), count, count, max_tokens=1, num_pairs=num_pairs)


def _across(chosen: Chosen, update: Update, by_seed: Sequence[Sequence[int]]) -> Targets:
    """The targets of the round, made across the groups of each seed where the shape compares groups."""
    shape, targets = update.shape, chosen.targets
    if shape.record.across is None or getattr(shape.settings, "std", "step") == "group":
        return targets
    for indices in filter(None, by_seed):
        rows = _rows(chosen, indices)
        part: Groups = chosen.groups.part(rows, _totals(chosen, indices, 1))
        made = shape.record.across(part, targets.part(chosen.groups, rows), shape.settings)
        targets = targets.put(chosen.groups, rows, made)
    return targets
