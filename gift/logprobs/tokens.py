"""Token log-probs of completions under a causal LM, without ever holding the [tokens, vocabulary] logits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gift.logprobs.attention import LAYERS, PACKED_ATTENTION, gather_rows, packed_attention
from gift.logprobs.head import LogprobHead, tie
from gift.logprobs.layouts import TokenBatch, token_batch
from gift.logprobs.settings import Layout, Packing
from gift.project.errors import UserError
from gift.project.ragged import Ragged, ranges

# The largest difference in nats between two ways to the same log-prob that rounding explains.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# Rows that a packed forward is tried on: two that share a prompt, and another.
TRIAL = (([1, 2, 3, 4], [5, 6, 7]), ([1, 2, 3, 4], [8, 3]), ([7, 1, 2], [3, 4, 5, 6, 1]))


class TokenLogprobs(nn.Module):
    """A transformers causal LM as a function from a `TokenBatch` to the log-probs of its completion tokens.

    `layout` is how batches for it are to be laid out: what `packing` names; `auto` is `shared` where that gives the
    model's own log-probs, else `padded`, and `note` says why.
    """

    def __init__(self, model: Any, temperature: float, packing: Packing = "padded") -> None:
        super().__init__()
        self.model: Any = model
        self.tied = tie(model)
        self.head = LogprobHead(model.get_output_embeddings(), temperature, self.tied)
        self.layout: Layout = "padded"
        self.note: str | None = None
        if packing != "padded":
            self._pack("shared" if packing == "auto" else packing, must=packing != "auto")

    def forward(self, batch: TokenBatch) -> Tensor:
        """Log-probs in nats, float32 [N], under softmax(logits / temperature)."""
        return self.logprobs(self.states(batch), batch)

    def states(self, batch: TokenBatch, embedded: Tensor | None = None) -> Tensor:
        """The last hidden states [B * T, H]; embedded: [B, T, H], what stands in for the embeddings of the tokens."""
        packed = {} if batch.position_ids is None else {"position_ids": batch.position_ids, "blocks": batch.blocks}
        tokens = {"input_ids": batch.input_ids} if embedded is None else {"inputs_embeds": embedded}
        out = self.model.get_decoder()(**tokens, use_cache=False, **packed)
        states: Tensor = out.last_hidden_state.flatten(0, 1)
        return states

    def logprobs(self, states: Tensor, batch: TokenBatch) -> Tensor:
        logprobs: Tensor = self.head(gather_rows(states, batch.positions), batch.targets)
        return logprobs

    def _pack(self, layout: Layout, must: bool) -> None:
        """Switch to packed attention, if the model takes it and its log-probs stay the same."""
        from transformers import AttentionInterface

        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
        config = self.model.config.get_text_config()
        others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
        trouble = f"it has layers of the kind {others[0]}" if others else None
        if trouble is None and not self.model._can_set_attn_implementation():
            trouble = "it does not take another attention function"
        if trouble is None:
            alone = self._trial("padded")
            before = config._attn_implementation
            self.model.set_attn_implementation(PACKED_ATTENTION)
            try:
                gap = float((self._trial(layout) - alone).abs().max())
                if not gap <= ROUNDING[self.head.weight.dtype]:
                    trouble = f"its log-probs become others by {gap:.3g} nats"
            except (TypeError, UserError) as error:  # attention of a kind of its own
                trouble = str(error)
            if trouble is not None:
                self.model.set_attn_implementation(before)
        if trouble is None:
            self.layout = layout
        elif must:
            raise UserError(
                f"launch.yaml: packing: {layout}: not with a {type(self.model).__name__}: {trouble}; set it to padded"
            )
        else:
            self.note = f"rows are padded, and prompts not shared: a {type(self.model).__name__} cannot: {trouble}"

    @torch.no_grad()
    def _trial(self, layout: Layout) -> Tensor:
        size = len(self.head.weight)
        prompts, completions = (Ragged.of([np.array(row[part]) % size for row in TRIAL], np.int32) for part in (0, 1))
        together = [range(len(TRIAL))] if layout != "padded" else [[row] for row in range(len(TRIAL))]
        batches = (token_batch(prompts.take(rows), completions.take(rows), layout) for rows in together)
        return torch.cat([self(batch.to(self.head.weight.device)) for batch in batches])


def completion_logprobs(model: TokenLogprobs, prompts: Ragged, completions: Ragged, batches: list[list[int]]) -> Ragged:
    """Log-probs of every completion, float32, row by row, without gradient; `batches` is a partition of the rows."""
    logprobs = np.full(len(completions.values), np.nan, dtype=np.float32)
    with torch.no_grad():
        for rows in batches:
            own = completions.take(rows)
            batch = token_batch(prompts.take(rows), own, model.layout)
            places = ranges(completions.offsets[rows], own.lengths)
            logprobs[places] = model(batch.to(model.head.weight.device)).cpu().numpy()
    return Ragged(logprobs, completions.offsets)
