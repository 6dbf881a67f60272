"""A policy with the head of a method beside it: what the head makes of hidden states trains as the policy does."""

from typing import Any

import torch
from torch import Tensor, nn

from gift.logprobs.attention import gather_rows
from gift.logprobs.layouts import TokenBatch
from gift.logprobs.settings import Packing
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from gift.project.sections import Choice
from gift.project.seeds import seed_of

PREFIX = "learned."  # of the head's parameters, which are no part of the policy


class LearnedLogprobs(TokenLogprobs):
    """`TokenLogprobs` whose module `learned` makes numbers of the mean of some last hidden states."""

    def __init__(self, model: Any, temperature: float, packing: Packing, learned: nn.Module, detached: bool) -> None:
        super().__init__(model, temperature, packing)
        self.learned, self.detached = learned, detached

    def forward(self, batch: TokenBatch, places: tuple[Tensor, ...] = ()) -> Any:
        """Log-probs [N], and float32 [M] or [M, K] of M means; places: int64, of the states of each in the batch.

        Without places the log-probs alone.
        """
        states = self.states(batch)
        logprobs = self.logprobs(states, batch)
        if not places:
            return logprobs
        seen = states.detach() if self.detached else states
        gathered = gather_rows(seen, torch.cat(places)).split([len(tokens) for tokens in places])
        means = torch.stack([tokens.float().mean(0) for tokens in gathered])
        return logprobs, self.learned(means.to(next(self.learned.parameters()).dtype)).float()


def policy_module(
    model: Any, temperature: float, packing: Packing, match: Choice, seed: int, names: tuple[str, ...]
) -> TokenLogprobs:
    """The module that trains: the policy's log-probs and, where the method has one, its head; names: of the rewards."""
    head = match.record.head
    if head is None:
        return TokenLogprobs(model, temperature, packing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("head", seed))
        learned = head.build(model.config.get_text_config().hidden_size, match.settings, names)
    return LearnedLogprobs(model, temperature, packing, learned, head.detached)


def refuse_other_head(path: Any, stored: set[str], module: set[str]) -> None:
    """Raise `UserError` where a training state has another head than the method of this round; names of parameters."""
    mine, theirs = ({name for name in names if name.startswith(PREFIX)} for names in (module, stored))
    if mine != theirs:
        (which, name) = ("has", min(theirs - mine)) if theirs - mine else ("lacks", min(mine - theirs))
        raise UserError(
            f"{path}: it {which} {name}, a parameter of the head that another update.match, or other rewards, trained; "
            "name those that the round before had, or set update.optimizer_state to reset"
        )
