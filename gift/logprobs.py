"""Token log-probs of completions under a causal LM, without ever holding the [tokens, vocabulary] logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gift.errors import UserError

LOGITS_BUDGET_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenBatch:
    """B padded sequences (prompt, completion, padding) and where their N completion tokens are predicted.

    input_ids: int64 [B, T]. positions: int64 [N], index into the flattened [B * T] of the token *before* each
    completion token, sequence after sequence. targets: int64 [N], the completion tokens.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(self.input_ids.to(device), self.positions.to(device), self.targets.to(device))


def token_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
    """Pad on the right: under causal attention no real token sees the padding, so no attention mask is needed."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    positions = []
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        input_ids[index, : len(row)] = torch.tensor(row)
        positions.append(torch.arange(len(prompt) - 1, len(row) - 1) + index * width)
    targets = torch.cat([torch.tensor(completion, dtype=torch.int64) for completion in completions])
    return TokenBatch(input_ids, torch.cat(positions), targets)


class TokenLogprobs(nn.Module):
    """A transformers causal LM as a function from a `TokenBatch` to the log-probs of its completion tokens."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature
        config = model.config.get_text_config()
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            value = getattr(config, name, None)
            if value not in (None, 1, 1.0):
                raise UserError(
                    f"the policy's config has {name}={value}: models that change their logits are not supported"
                )
        self.chunk = max(1, LOGITS_BUDGET_BYTES // (4 * config.vocab_size))

    def forward(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """Log-probs in nats, float32 [N], under softmax(logits / temperature); arguments as in `TokenBatch`."""
        hidden = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)[positions]
        parts = []
        for part, target in zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True):
            if torch.is_grad_enabled() and len(hidden) > self.chunk:
                parts.append(checkpoint(self._chunk, part, target, use_reentrant=False))
            else:
                parts.append(self._chunk(part, target))
        return torch.cat(parts)

    def _chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.get_output_embeddings()(hidden).float() / self.temperature
        return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def completion_logprobs(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], batches: list[list[int]]
) -> list[Tensor]:
    """Log-probs of every completion, one float32 [T_i] tensor each, in the order given; no gradient.

    `model` is a `TokenLogprobs` (or an engine's forward of one); `batches` is a partition of the rows.
    """
    out: list[Tensor | None] = [None] * len(prompts)
    device = next(model.parameters()).device
    with torch.no_grad():
        for rows in batches:
            batch = token_batch([prompts[i] for i in rows], [completions[i] for i in rows]).to(device)
            values = model(batch.input_ids, batch.positions, batch.targets).float().cpu()
            for row, part in zip(rows, values.split([len(completions[i]) for i in rows]), strict=True):
                out[row] = part
    return [part for part in out if part is not None]
