"""Attention over packed sequences that may share their prompt, behind transformers' attention interface."""

from typing import Any

import torch
from torch import Tensor

from gift.logprobs.checkpointing import keeping_attention
from gift.logprobs.flash import Segments, shared_attention
from gift.logprobs.layouts import Block
from gift.project.errors import UserError

PACKED_ATTENTION = "gift_packed"  # its name in transformers' table
LAYERS = {"full_attention", "sliding_attention"}  # the kinds of layers whose tokens see each other by attention alone
ARGUMENTS = ("softcap", "s_aux", "position_bias")  # of other attention functions: what is not done here


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index]: x [N, ...], index int64 [M]; the gradient of a row is summed in float32 and rounded once.

    The coefficients of a group sum to nearly 0, and with them what its completions send to their prompt. GPUs add the
    rows of `index_select` in the type of the tensor, and in bfloat16 that would keep the rounding of each addition.
    """
    out: Tensor = _GatherRows.apply(x, index)
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        gradient = gradients[0]
        total = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:], dtype=torch.float32)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    blocks: tuple[Block, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, T, D], key and value [1, kv_heads, T, D] of a packed batch.

    A prompt's tokens see those before them; a completion's see their prompt and those before them. Returns [1, T,
    heads, D]. segments: where FlashAttention is to be used; layers whose window is shorter than a row do without.
    """
    if given := [name for name in ARGUMENTS if others.get(name) is not None]:
        raise UserError(f"packed attention does not know `{given[0]}` of {type(module).__name__}")
    if segments is not None and not dropout and (sliding_window is None or segments.longest <= sliding_window):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return shared_attention(q, k, v, segments, scaling or query.shape[-1] ** -0.5).unsqueeze(0), None
    share = query.shape[1] // key.shape[1]
    lengths = [len(block.slot_of_token) for block in blocks]
    out = []
    for block, *parts in zip(blocks, *(x[0].split(lengths, 1) for x in (query, key, value)), strict=True):
        q, k, v = (_Reindex.apply(x, block.token_of_slot, block.slot_of_token) for x in parts)
        before: list[Tensor] = []
        if block.prompt_start is not None:
            before = [x[0].narrow(1, block.prompt_start, block.prompt_width) for x in (key, value)]
        if share > 1:
            k, v, *before = (x.repeat_interleave(share, 0) for x in (k, v, *before))
        attended = _block_attention(block, q, k, v, before, sliding_window, {"scale": scaling, "dropout_p": dropout})
        out.append(attended.index_select(0, block.slot_of_token))
    return torch.cat(out).unsqueeze(0), None


def _block_attention(
    block: Block,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: list[Tensor],
    window: int | None,
    how: dict[str, Any],
) -> Tensor:
    """query, key, value: [heads, slots, D]; returns [slots, heads, D].

    before: key and value [heads, P, D] of the one prompt, where it is in a block before. how: what torch's attention is
    told beside.
    """
    heads, _, size = query.shape
    cut = block.num_prompts * block.prompt_width
    out = []
    if cut:
        prompt_query, prompt_key, prompt_value = (_apart(x[:, :cut], block.num_prompts) for x in (query, key, value))
        mask = _bias(block, query, window, own=False)
        out.append(_attend(prompt_query, prompt_key, prompt_value, mask, how))
    elif before:
        prompt_key, prompt_value = (x.unsqueeze(0) for x in before)
    if block.row_width:
        own_query, own_key, own_value = (_apart(x[:, cut:], block.num_rows) for x in (query, key, value))
        if block.prompt_width:
            own_key = torch.cat([gather_rows(prompt_key, block.prompt_of_row), own_key], 2)
            own_value = torch.cat([gather_rows(prompt_value, block.prompt_of_row), own_value], 2)
        mask = _bias(block, query, window, own=True)
        out.append(_attend(own_query, own_key, own_value, mask, how))
    return torch.cat([x.transpose(1, 2).reshape(-1, heads, size) for x in out])


def _apart(slots: Tensor, count: int) -> Tensor:
    """[heads, count * width, D] to [count, heads, width, D]."""
    return slots.unflatten(1, (count, -1)).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: dict[str, Any]) -> Tensor:
    attend = torch.nn.functional.scaled_dot_product_attention
    with keeping_attention():
        return attend(query, key, value, attn_mask=mask, is_causal=mask is None, **how)


def _bias(block: Block, query: Tensor, window: int | None, own: bool) -> Tensor | None:
    """`_mask` as what is added to the scores (0 or -inf), one tensor for all layers of a forward.

    The backward pass keeps what attention was given; a bool it turns into such a tensor, another one in every layer.
    """
    key = (own, window, query.dtype)
    if key not in block.biases:
        mask = _mask(block, query.device, window, own)
        if mask is not None:
            width = mask.shape[-1]
            # GPU kernels copy a bias whose rows do not begin at multiples of 8 entries.
            room = query.new_zeros(*mask.shape[:-1], -(-width // 8) * 8)
            mask = room[..., :width].masked_fill_(~mask, -torch.inf)
        block.biases[key] = mask
    return block.biases[key]


def _mask(block: Block, device: torch.device, window: int | None, own: bool) -> Tensor | None:
    """Which keys a query sees: bool [R or 1, 1, queries, keys]; None for plain causal attention over equal lengths."""
    width = block.row_width if own else block.prompt_width
    longest = width + (block.prompt_width if own else 0)
    if window is not None and longest <= window:
        window = None
    has_prompt = own and block.prompt_width > 0
    if not has_prompt and window is None:
        return None
    query = torch.arange(width, device=device).unsqueeze(1)
    distance = query - query.T
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    if not has_prompt:
        return seen[None, None]
    lengths = block.prompt_lengths[:, None, None, None]
    if block.num_prompts > 1:
        lengths = lengths.index_select(0, block.prompt_of_row)
    place = torch.arange(block.prompt_width, device=device)
    prompt_seen = place < lengths
    if window is not None:
        prompt_seen = prompt_seen & (lengths + query - place < window)
    prompt_seen = prompt_seen.expand(-1, 1, width, -1)
    return torch.cat([prompt_seen, seen.expand(len(lengths), 1, -1, -1)], -1)


class _Reindex(torch.autograd.Function):
    """x[:, token_of_slot]; backward reads each token's slot, as padding slots have no gradient and no token has two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token_of_slot: Tensor, slot_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of_token)
        return x.index_select(1, token_of_slot)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slot_of_token,) = ctx.saved_tensors
        return gradients[0].index_select(1, slot_of_token), None, None
