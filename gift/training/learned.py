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
    """`TokenLogprobs` whose module `learned` makes one number a prompt of the mean of its last hidden states."""

    def __init__(self, model: Any, temperature: float, packing: Packing, learned: nn.Module) -> None:
        super().__init__(model, temperature, packing)
        self.learned = learned

    def forward(self, batch: TokenBatch, prompts: tuple[Tensor, ...] = ()) -> Any:
        """Log-probs [N], and float32 [P]; prompts: of each, int64 places of its tokens in the flattened batch.

        Without prompts the log-probs alone.
        """
        states = self.states(batch)
        logprobs = self.logprobs(states, batch)
        if not prompts:
            return logprobs
        gathered = gather_rows(states, torch.cat(prompts)).split([len(tokens) for tokens in prompts])
        means = torch.stack([tokens.float().mean(0) for tokens in gathered])
        return logprobs, self.learned(means.to(next(self.learned.parameters()).dtype)).float()


def policy_module(model: Any, temperature: float, packing: Packing, match: Choice, seed: int) -> TokenLogprobs:
    """The module that trains: the policy's log-probs and, where the method has one, its head."""
    head = match.record.head
    if head is None:
        return TokenLogprobs(model, temperature, packing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("head", seed))
        learned = head.build(model.config.get_text_config().hidden_size, match.settings)
    return LearnedLogprobs(model, temperature, packing, learned)


def refuse_other_head(path: Any, stored: set[str], module: set[str]) -> None:
    """Raise `UserError` where a training state has another head than the method of this round; names of parameters."""
    mine, theirs = ({name for name in names if name.startswith(PREFIX)} for names in (module, stored))
    if mine != theirs:
        (which, name) = ("has", min(theirs - mine)) if theirs - mine else ("lacks", min(mine - theirs))
        raise UserError(
            f"{path}: it {which} {name}, a parameter of the head that another update.match trains; name the match that "
            "the round before had, or set update.optimizer_state to reset"
        )
