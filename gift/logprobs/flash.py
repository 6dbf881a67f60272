"""FlashAttention over a packed row whose completions share their prompts: two calls, merged by their log-sum-exp.

Nothing is padded, moved into slots, or repeated. One call lets every prompt and every completion see itself, causally;
the other lets completions see their prompt. With a and b the log-sum-exp of a query's scores in each, its output is the
sum of both outputs, weighted with exp(a - c) and exp(b - c), where c = log(exp a + exp b). Backward of a call needs
nothing of the other but the merged output and c: the gradient of a score s is exp(s - c) times (dp - the sum of output
x its gradient), whatever else c is a sum of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gift.logprobs.checkpointing import attended
from gift.project.ragged import Ints

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005}
"""Of a trial, as a share of the largest value: outputs and gradients are rounded to this type many times."""
MAX_HEAD_SIZE = 256
TRIAL = ((5, (7, 3)), (0, (9,)), (130, (1, 70, 4)))
"""Tokens of prompts and of the completions that follow each: one is longer than a kernel's tile."""


@dataclass(frozen=True)
class Cuts:
    """Where sequences begin and end in what a kernel is given: int32 [S + 1], from 0; and the longest."""

    cuts: Tensor
    longest: int


@dataclass(frozen=True)
class Call:
    """What one call of a kernel computes: query sequence i sees key sequence i, all of it or what is not behind."""

    queries: Cuts
    keys: Cuts
    is_causal: bool
    scale: float

    @property
    def sizes(self) -> tuple[Tensor, Tensor, int, int]:
        return self.queries.cuts, self.keys.cuts, self.queries.longest, self.keys.longest


@dataclass(frozen=True)
class Segments:
    """The tokens of a packed row, for kernels that take sequences as they lie.

    own: each prompt and each completion. queries: int64 [Q], the tokens of completions that follow a prompt, and
    of_queries their cuts, one for each prompt. keys, of_keys: the same of the prompts. longest: tokens of a prompt with
    its longest completion.
    """

    own: Cuts
    queries: Tensor
    of_queries: Cuts
    keys: Tensor
    of_keys: Cuts
    longest: int

    def to(self, device: torch.device) -> "Segments":
        cuts = (Cuts(sent(each.cuts, device), each.longest) for each in (self.own, self.of_queries, self.of_keys))
        own, of_queries, of_keys = cuts
        return Segments(own, sent(self.queries, device), of_queries, sent(self.keys, device), of_keys, self.longest)

    def calls(self, scale: float) -> tuple[Call, Call]:
        """All among themselves, causally; then completions to their prompt."""
        return Call(self.own, self.own, True, scale), Call(self.of_queries, self.of_keys, False, scale)


def sent(value: Tensor, device: torch.device) -> Tensor:
    """On a device; a GPU gets it while this process goes on, and builds the next batch."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def segments(pieces: Sequence[tuple[int, Sequence[int]]]) -> Segments:
    """pieces: tokens of each prompt (0: none), and of each completion that follows it, as they lie in the row."""
    own, queries, keys, num_queries, num_keys = [], [], [], [], []
    place = longest = 0
    for prompt, bodies in pieces:
        length = sum(bodies)
        own += [prompt, *bodies]
        if prompt and length:
            keys.append(np.arange(place, place + prompt))
            queries.append(np.arange(place + prompt, place + prompt + length))
            num_keys.append(prompt)
            num_queries.append(length)
        place += prompt + length
        longest = max(longest, prompt + max(bodies, default=0))
    return Segments(_cuts(own), _join(queries), _cuts(num_queries), _join(keys), _cuts(num_keys), longest)


def _cuts(lengths: Sequence[int]) -> Cuts:
    some = [length for length in lengths if length]
    return Cuts(torch.tensor([0, *np.cumsum(some)], dtype=torch.int32), max(some, default=0))


def _join(places: list[Ints]) -> Tensor:
    return torch.from_numpy(np.concatenate(places) if places else np.zeros(0, np.int64))


class Kernels(Protocol):
    """Attention of sequences that lie one behind the other, forward and backward."""

    def forward(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """query [T, heads, D], key and value [K, kv_heads, D]: the output [T, heads, D], log-sum-exp [heads, T]."""

    def backward(
        self, call: Call, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value from that of `out`."""


class Flash:
    """torch's own FlashAttention, of a GPU."""

    def forward(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        given = query, key, value, *call.sizes, 0.0, call.is_causal, False
        found = torch.ops.aten._flash_attention_forward(*given, scale=call.scale)
        return found[0], found[1]

    def backward(
        self, call: Call, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, of which there is none
        unused = torch.empty(0, device=query.device)
        given = gradient, query, key, value, out, lse, *call.sizes, 0.0, call.is_causal, state, unused
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(*given, scale=call.scale)
        return made


FLASH = Flash()


def shared_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Segments, scale: float, kernels: Kernels | None = None
) -> Tensor:
    """query [T, heads, D], key and value [T, kv_heads, D] of a packed row; returns [T, heads, D].

    A prompt's tokens see those before them; a completion's see their prompt and those before them.
    """
    out: Tensor = _Shared.apply(query, key, value, rows, scale, kernels or FLASH)
    return out


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Segments, scale: float, kernels: Kernels
    ) -> Tensor:
        query, key, value = (each.contiguous() for each in (query, key, value))
        out, lse = attended(lambda: _merged(kernels, rows, scale, query, key, value))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.how = rows, scale, kernels
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        rows, scale, kernels = ctx.how
        own, of_prompts = rows.calls(scale)
        gradient = gradients[0].contiguous()
        made = kernels.backward(own, gradient, query, key, value, out, lse)
        if len(rows.queries):
            of_prompt = query[rows.queries], key[rows.keys], value[rows.keys]
            merged = out[rows.queries], lse[:, rows.queries].contiguous()
            more = kernels.backward(of_prompts, gradient[rows.queries], *of_prompt, *merged)
            places = rows.queries, rows.keys, rows.keys
            made = tuple(_add(*each) for each in zip(made, places, more, strict=True))
        return *made, None, None, None


def _merged(
    kernels: Kernels, rows: Segments, scale: float, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """The output [T, heads, D] of both calls together, and its log-sum-exp [heads, T]."""
    own, of_prompts = rows.calls(scale)
    out, lse = kernels.forward(own, query, key, value)
    if len(rows.queries):
        of_prompt = query[rows.queries], key[rows.keys], value[rows.keys]
        there, there_lse = kernels.forward(of_prompts, *of_prompt)
        here_lse = lse[:, rows.queries]
        both = torch.logaddexp(here_lse, there_lse)
        here = out[rows.queries]
        merged = here * _weight(here_lse - both) + there * _weight(there_lse - both)
        out = out.index_copy(0, rows.queries, merged.to(out.dtype))
        lse = lse.index_copy(1, rows.queries, both)
    return out, lse


def _weight(difference: Tensor) -> Tensor:
    """[heads, Q] to [Q, heads, 1]."""
    return difference.exp().t().unsqueeze(-1)


def _add(total: Tensor, places: Tensor, more: Tensor) -> Tensor:
    """Rounded once: what completions send to their prompt nearly cancels in a group."""
    wide = total[places].to(torch.promote_types(total.dtype, torch.float32)) + more
    return total.index_copy(0, places, wide.to(total.dtype))


def flash_problem(heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why FlashAttention is not used: for what it is not made, or a trial on this device that comes out otherwise.

    heads: of queries, of keys, and their size.
    """
    if dtype not in TOLERANCE:
        return f"it is for bfloat16 and float16, not for {str(dtype).removeprefix('torch.')}"
    if heads[2] > MAX_HEAD_SIZE or heads[2] % 8:
        return f"it takes heads of at most {MAX_HEAD_SIZE}, a multiple of 8; the model's are {heads[2]}"
    return differs(FLASH, heads, dtype, device)


def differs(kernels: Kernels, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> str | None:
    """What of a trial is not as dense attention in float64 has it: the output, or the gradient of an input."""
    rows = segments(TRIAL)
    total = int(rows.own.cuts[-1])
    noise = torch.Generator().manual_seed(0)
    number, shared, size = heads
    shapes = [(total, number, size), (total, shared, size), (total, shared, size), (total, number, size)]
    values = [torch.randn(shape, generator=noise, dtype=torch.float64).to(device, dtype) for shape in shapes]
    gradient = values.pop()

    def run(attend: Callable[[Tensor, Tensor, Tensor], Tensor], wanted: torch.dtype) -> list[Tensor]:
        query, key, value = (each.to(wanted).requires_grad_() for each in values)
        out = attend(query, key, value)
        return [out.detach(), *torch.autograd.grad(out, [query, key, value], gradient.to(wanted))]

    try:
        found = run(lambda q, k, v: shared_attention(q, k, v, rows.to(device), size**-0.5, kernels), dtype)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    seen = seen_by(TRIAL).to(device)
    right = run(lambda q, k, v: dense_attention(q, k, v, seen, size**-0.5), torch.float64)
    for name, one, other in zip(("output", "query", "key", "value"), found, right, strict=True):
        gap = float((one.double() - other).abs().max() / other.abs().max())
        if not gap <= TOLERANCE.get(dtype, 1e-12):
            what = name if name == "output" else f"gradient of the {name}"
            return f"the {what} of a trial is another by {gap:.2g} of its largest value"
    return None


def seen_by(pieces: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """Which tokens of a packed row a token sees: bool [T, T]."""
    total = sum(prompt + sum(bodies) for prompt, bodies in pieces)
    seen = torch.zeros(total, total, dtype=torch.bool)
    place = 0
    for prompt, bodies in pieces:
        first = place
        for length in (prompt, *bodies):
            seen[place : place + length, place : place + length] = torch.ones(length, length, dtype=torch.bool).tril()
            if place > first:
                seen[place : place + length, first : first + prompt] = True
            place += length
    return seen


def dense_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """The formula, of all pairs at once: what `shared_attention` is held against."""
    share = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(share, 1) for each in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key).mul(scale).masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
