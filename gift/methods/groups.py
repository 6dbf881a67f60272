"""The one input of every objective: the tokens and rewards of whole groups."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupBatch:
    """P groups of G completions with N completion tokens in total (flat, completion after completion).

    logprobs, ref_logprobs, old_logprobs: float [N], nats, of each sampled token under the current policy, the
    reference, and the policy the round started from. completion: int64 [N], which completion (0 .. P*G-1, groups in
    order) a token belongs to. rewards: float [P, G]. advantages: float [P, G], the targets that
    `gift.methods.shape.zscore` makes of the rewards. mask: bool [P, G], completions that train (scored ones).
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    old_logprobs: Tensor
    completion: Tensor
    rewards: Tensor
    advantages: Tensor
    mask: Tensor

    def lengths(self) -> Tensor:
        """Tokens of each completion, float [P, G]."""
        return self.sum_tokens(torch.ones_like(self.logprobs))

    def sum_tokens(self, values: Tensor) -> Tensor:
        """Sum of a per-token value over each completion: [N] to [P, G]."""
        flat = torch.zeros(self.rewards.numel(), dtype=values.dtype, device=values.device)
        return flat.index_add(0, self.completion, values).view(self.rewards.shape)
