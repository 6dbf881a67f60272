"""Token log-probs of completions under a causal LM, without ever holding the [tokens, vocabulary] logits."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gift.logprobs.attention import LAYERS, PACKED_ATTENTION, gather_rows, packed_attention
from gift.logprobs.flash import flash_problem, segments
from gift.logprobs.head import LogprobHead, tie
from gift.logprobs.layouts import TokenBatch, token_batch
from gift.logprobs.settings import Layout, Packing
from gift.project.errors import UserError
from gift.project.ragged import Ragged, ranges

# The largest difference in nats between two ways to the same log-prob that rounding explains. In some models it
# grows: those are tried again in float64, where next to nothing is left of it.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25}
EXACT = 1e-3
# Rows that a packed forward is tried on: tokens of the prompt and of the completion. The first two share their prompt.
TRIAL = ((6, 7), (6, 4), (3, 9))


class TokenLogprobs(nn.Module):
    """A transformers causal LM as a function from a `TokenBatch` to the log-probs of its completion tokens.

    `layout` is how batches for it are to be laid out: what `packing` names; `auto` is `shared` where that gives the
    model's own log-probs, else `padded`, and `note` says why.
    """

    def __init__(self, model: Any, temperature: float, packing: Packing = "padded") -> None:
        super().__init__()
        # It would build a plan, in about a second, for each new shape of a batch, and nearly every batch has its own.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model: Any = model
        self.tied = tie(model)
        self.head = LogprobHead(model.get_output_embeddings(), temperature, self.tied)
        self.layout: Layout = "padded"
        self.note: str | None = None
        self.flash = False
        if packing != "padded":
            self._pack("shared" if packing == "auto" else packing, must=packing != "auto")

    def forward(self, batch: TokenBatch) -> Tensor:
        """Log-probs in nats, float32 [N], under softmax(logits / temperature)."""
        return self.logprobs(self.states(batch), batch)

    def states(self, batch: TokenBatch, embedded: Tensor | None = None) -> Tensor:
        """The last hidden states [B * T, H]; embedded: [B, T, H], what stands in for the embeddings of the tokens."""
        packed: dict[str, Any] = {}
        if batch.position_ids is not None:
            packed = {"position_ids": batch.position_ids, "blocks": batch.blocks}
            packed |= {"segments": segments(batch.pieces).to(batch.input_ids.device)} if self.flash else {}
        tokens = {"input_ids": batch.input_ids} if embedded is None else {"inputs_embeds": embedded}
        out = self.model.get_decoder()(**tokens, use_cache=False, **packed)
        states: Tensor = out.last_hidden_state.flatten(0, 1)
        return states

    def logprobs(self, states: Tensor, batch: TokenBatch) -> Tensor:
        logprobs: Tensor = self.head(gather_rows(states, batch.positions), batch.targets)
        return logprobs

    def use_flash(self, device: torch.device) -> str | None:
        """Have packed attention use FlashAttention on this device, or say why not."""
        config = self.model.config.get_text_config()
        number, shared = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // number
        problem = flash_problem((number, shared, size), self.head.weight.dtype, device)
        if self.layout == "padded":
            problem = "rows are padded"
        self.flash = problem is None
        return problem

    def _pack(self, layout: Layout, must: bool) -> None:
        """Switch to packed attention, if the model takes it and its log-probs stay the same."""
        from transformers import AttentionInterface

        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
        config = self.model.config.get_text_config()
        others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
        trouble = f"the model has layers of the kind {others[0]}" if others else None
        if trouble is None and not self.model._can_set_attn_implementation():
            trouble = "the model takes no other attention function"
        if trouble is None:
            trouble = self._try(layout, config._attn_implementation)
        if trouble is None:
            self.model.set_attn_implementation(PACKED_ATTENTION)
            self.layout = layout
        elif must:
            raise UserError(f"launch.yaml: packing: {layout}: not with this model: {trouble}; set it to padded")
        else:
            self.note = f"rows are padded, and prompts not shared: {trouble}"

    def _try(self, layout: Layout, attention: str) -> str | None:
        """What speaks against a packed forward, if anything; the model keeps the `attention` it has."""
        try:
            gap = self._gap(layout, attention)
            if gap <= ROUNDING[self.head.weight.dtype]:
                return None
            with in_float64(self.model.get_decoder()):
                exact = self._gap(layout, attention)
        except (TypeError, RuntimeError, UserError) as error:  # attention of a kind of its own, or no float64
            return str(error).partition("\n")[0]
        if exact <= EXACT:
            return None
        return f"packed, log-probs of a trial are others by {gap:.2g} nats ({exact:.2g} in float64)"

    def _gap(self, layout: Layout, attention: str) -> float:
        """The largest difference between the log-probs of a trial's rows together, packed, and of each by itself."""
        alone = self._trial("padded", [[row] for row in range(len(TRIAL))])
        self.model.set_attn_implementation(PACKED_ATTENTION)
        try:
            return float((self._trial(layout, [list(range(len(TRIAL)))]) - alone).abs().max())
        finally:
            self.model.set_attn_implementation(attention)

    @torch.no_grad()
    def _trial(self, layout: Layout, batches: list[list[int]]) -> Tensor:
        """The head, which no layout concerns, is given the rows of all batches at once."""
        weight = self.head.weight
        prompts, completions = trial_rows(len(weight))
        states, targets = [], []
        for rows in batches:
            batch = token_batch(prompts.take(rows), completions.take(rows), layout).to(weight.device)
            states.append(gather_rows(self.states(batch), batch.positions).to(weight.dtype))
            targets.append(batch.targets)
        logprobs: Tensor = self.head(torch.cat(states), torch.cat(targets))
        return logprobs


def trial_rows(vocabulary: int) -> tuple[Ragged, Ragged]:
    """Prompts and completions of a trial, of tokens that are spread over the vocabulary's middle.

    Special tokens stand at its ends. In a row, as no text has them, they make trained models round as no text does.
    """
    edge = vocabulary // 8
    spread = np.arange(sum(map(sum, TRIAL))) * (math.sqrt(5) - 1) / 2 % 1 * (vocabulary - 2 * edge)
    parts = np.split(edge + spread.astype(np.int32), np.cumsum(TRIAL)[:-1])
    prompts, completions = parts[0::2], parts[1::2]
    return Ragged.of([prompts[0], prompts[0], *prompts[2:]], np.int32), Ragged.of(completions, np.int32)


@contextmanager
def in_float64(decoder: nn.Module) -> Iterator[None]:
    """Let a decoder compute in float64, with the weights of one module at a time in it: all of them may not fit.

    An embedding is looked up in its own type. Norms of transformers' models still round to float32 inside.
    """
    kept: dict[nn.Parameter, Tensor] = {}

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def widen(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if not isinstance(module, nn.Embedding):
            for parameter in module.parameters(recurse=False):
                kept[parameter] = parameter.data
                parameter.data = parameter.data.double()
        return tuple(map(wide, inputs)), {name: wide(value) for name, value in named.items()}

    def restore(module: nn.Module, _: Any, output: Any) -> Any:
        for parameter in module.parameters(recurse=False):
            parameter.data = kept.pop(parameter, parameter.data)
        return wide(output)

    with ExitStack() as stack:
        for module in decoder.modules():
            if next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_pre_hook(widen, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(restore, always_call=True).remove)
        yield


def completion_logprobs(
    model: TokenLogprobs, prompts: Ragged, completions: Ragged, batches: Iterable[list[int]]
) -> Ragged:
    """Log-probs of every completion, float32, row by row, without gradient; `batches` is a partition of the rows."""
    logprobs = np.full(len(completions.values), np.nan, dtype=np.float32)
    with torch.no_grad():
        for rows in batches:
            own = completions.take(rows)
            batch = token_batch(prompts.take(rows), own, model.layout)
            places = ranges(completions.offsets[rows], own.lengths)
            logprobs[places] = model(batch.to(model.head.weight.device)).cpu().numpy()
    return Ragged(logprobs, completions.offsets)
