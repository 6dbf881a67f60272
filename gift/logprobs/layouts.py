"""How completions lie in one forward: padded rows, packed rows, or packed groups that share their prompt."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift.logprobs.flash import sent
from gift.logprobs.settings import Layout
from gift.project.ragged import Ints, Ragged, ranges

# Sequences of a packed batch are padded to each other inside attention only, in blocks: with at most this much padding
# (a share of the tokens, and some slots that cost less than another call), and this many entries of a mask.
BLOCK_PADDING, BLOCK_PADDING_SLOTS = 0.25, 1024
BLOCK_MASK_ENTRIES = 2**22

Piece = tuple[int, list[int]]  # tokens of a prompt, and of each completion that follows it


@dataclass(frozen=True)
class Block:
    """Neighbouring sequences of a packed batch that one attention call serves: S prompts with R completions in all.

    Slots are [S * P + R * C] places: prompts padded to P, then completions padded to C. token_of_slot: int64 [slots],
    index into the block's tokens (any where a slot is padding). slot_of_token: int64 [tokens], the slot of each.
    prompt_of_row: int64 [R]. prompt_lengths: int64 [S].

    Further completions of a prompt that is in a block before have S = 0, prompt_lengths int64 [1], and in
    `prompt_start` the place of the prompt's P tokens in the batch.
    """

    num_prompts: int
    prompt_width: int
    num_rows: int
    row_width: int
    token_of_slot: Tensor
    slot_of_token: Tensor
    prompt_of_row: Tensor
    prompt_lengths: Tensor
    prompt_start: int | None = None
    biases: dict[Any, Tensor | None] = field(default_factory=dict, repr=False, compare=False)  # attention's own


@dataclass(frozen=True)
class TokenBatch:
    """The input of one forward, and where its N completion tokens are predicted.

    input_ids: int64 [B, T]; packed layouts have B = 1. positions: int64 [N], index into the flattened [B * T] of the
    token *before* each completion token, completion after completion. targets: int64 [N], the completion tokens.
    position_ids: int64 [1, T], pieces (as they lie) and blocks of them where packed. The last token of a completion
    predicts nothing and is left out.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    position_ids: Tensor | None = None
    blocks: tuple[Block, ...] = ()
    pieces: tuple[Piece, ...] = ()

    def to(self, device: torch.device) -> "TokenBatch":
        blocks = tuple(replace(block, **_moved(block, device), biases={}) for block in self.blocks)
        return replace(self, **_moved(self, device), blocks=blocks)


def _moved(record: Block | TokenBatch, device: torch.device) -> dict[str, Any]:
    """The fields of a record that are tensors, on a device."""
    return {name: sent(value, device) for name, value in vars(record).items() if isinstance(value, Tensor)}


def token_batch(prompts: Ragged, completions: Ragged, layout: Layout = "padded") -> TokenBatch:
    """Lay rows of tokens out for one forward. Under `shared`, neighbours with equal prompts are computed with one copy.

    Padding is on the right: under causal attention no real token sees it, so no attention mask is needed.
    """
    if layout == "padded":
        width = int((prompts.lengths + completions.lengths).max()) - 1
        starts = np.arange(len(prompts)) * width
        tokens, positions, _ = _place(prompts, completions, starts, starts + prompts.lengths, len(prompts) * width)
        return TokenBatch(tokens.view(-1, width), positions, _tensor(completions.values))
    return _packed(prompts, completions, layout == "shared")


def _packed(prompts: Ragged, completions: Ragged, share: bool) -> TokenBatch:
    """One row of tokens: each prompt once, then the completions that follow it.

    Without sharing a sequence is all "completion" after an empty prompt, so that attention knows one case only.
    """
    groups: list[list[int]] = []  # rows that follow one prompt
    for row in range(len(prompts)):
        if share and groups and np.array_equal(prompts[row], prompts[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    lengths = prompts.lengths.tolist()
    bodies = (completions.lengths - 1 + (0 if share else prompts.lengths)).tolist()
    prompt_starts, body_starts = np.zeros_like(prompts.lengths), np.zeros_like(prompts.lengths)
    pieces: list[Piece] = []
    place = 0
    for group in groups:
        prompt = lengths[group[0]] if share else 0
        if not _is_filled([(prompt, [bodies[row] for row in group])]):
            group.sort(key=lambda row: -bodies[row])  # so that rows of similar length can be blocks
        pieces.append((prompt, [bodies[row] for row in group]))
        prompt_starts[group] = place
        place += prompt
        for row in group:
            body_starts[row] = place if share else place + lengths[row]
            place += bodies[row]
    tokens, positions, position_ids = _place(prompts, completions, prompt_starts, body_starts, place)
    return TokenBatch(
        input_ids=tokens.unsqueeze(0),
        positions=positions,
        targets=_tensor(completions.values),
        position_ids=position_ids.unsqueeze(0),
        blocks=_blocks(pieces),
        pieces=tuple(pieces),
    )


def _place(
    prompts: Ragged, completions: Ragged, prompt_starts: Ints, body_starts: Ints, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [size] with each row's prompt and completion where they start, the `positions` and `position_ids`."""
    tokens, position_ids = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    _, own = np.unique(prompt_starts, return_index=True)  # a shared prompt is written once
    first = prompts.take(own)
    places = ranges(prompt_starts[own], first.lengths)
    tokens[places] = first.values
    position_ids[places] = ranges(np.zeros_like(own), first.lengths)
    places = ranges(body_starts, completions.lengths)
    positions = places - 1
    positions[completions.offsets[:-1]] = prompt_starts + prompts.lengths - 1
    inner = np.ones(len(places), dtype=bool)
    inner[completions.offsets[1:] - 1] = False  # the last token of a completion
    tokens[places[inner]] = completions.values[inner]
    position_ids[places[inner]] = ranges(prompts.lengths, completions.lengths)[inner]
    return torch.from_numpy(tokens), torch.from_numpy(positions), torch.from_numpy(position_ids)


def _tensor(tokens: NDArray[Any]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


def _blocks(pieces: list[Piece]) -> tuple[Block, ...]:
    """Cut the batch into blocks: neighbouring pieces together, or the completions of one piece into several."""
    blocks, first, start = [], 0, 0  # start: where the tokens of the piece begin
    for last, (length, lengths) in enumerate(pieces, 1):
        if not _is_filled([(length, lengths)]):
            parts = _cut(lengths)
            blocks.append(_block([(length, parts[0])]))
            blocks += [_block([(length, part)], prompt_start=start) for part in parts[1:]]
            first = last
        elif last == len(pieces) or not _fit(pieces[first : last + 1]):
            blocks.append(_block(pieces[first:last]))
            first = last
        start += length + sum(lengths)
    return tuple(blocks)


def _cut(lengths: list[int]) -> list[list[int]]:
    """Lengths of completions, longest first, in parts that are filled; those without tokens are left out."""
    parts: list[list[int]] = []
    for length in lengths:
        if parts and _is_filled([(0, [*parts[-1], length])]):
            parts[-1].append(length)
        elif length or not parts:
            parts.append([length])
    return parts


def _sizes(pieces: list[Piece]) -> tuple[int, int, int]:
    """P, R and C of the block that some pieces would make."""
    rows = [length for _, lengths in pieces for length in lengths]
    return max(length for length, _ in pieces), len(rows), max(rows)


def _is_filled(pieces: list[Piece]) -> bool:
    """Whether the block that some pieces would make has little padding."""
    prompt_width, num_rows, row_width = _sizes(pieces)
    slots = len(pieces) * prompt_width + num_rows * row_width
    tokens = sum(length + sum(lengths) for length, lengths in pieces)
    return slots <= (1 + BLOCK_PADDING) * tokens + BLOCK_PADDING_SLOTS


def _fit(pieces: list[Piece]) -> bool:
    prompt_width, num_rows, row_width = _sizes(pieces)
    small = num_rows * row_width * (prompt_width + row_width) <= BLOCK_MASK_ENTRIES
    return small and _is_filled([pieces[-1]]) and _is_filled(pieces)


def _block(pieces: list[Piece], prompt_start: int | None = None) -> Block:
    prompt_width, num_rows, row_width = _sizes(pieces)
    num_prompts = len(pieces) if prompt_start is None else 0
    first_row, row = num_prompts * prompt_width, 0
    starts, lengths = [], []  # of what the block's tokens are, in their order: a prompt, its completions, ...
    for index, (prompt, bodies) in enumerate(pieces):
        if num_prompts:
            starts.append(index * prompt_width)
            lengths.append(prompt)
        for body in bodies:
            starts.append(first_row + row * row_width)
            lengths.append(body)
            row += 1
    slot_of_token = torch.from_numpy(ranges(starts, lengths))
    token_of_slot = torch.zeros(first_row + num_rows * row_width, dtype=torch.int64)
    token_of_slot[slot_of_token] = torch.arange(len(slot_of_token))
    return Block(
        num_prompts=num_prompts,
        prompt_width=prompt_width,
        num_rows=num_rows,
        row_width=row_width,
        token_of_slot=token_of_slot,
        slot_of_token=slot_of_token,
        prompt_of_row=torch.repeat_interleave(
            torch.arange(len(pieces)), torch.tensor([len(lengths) for _, lengths in pieces])
        ),
        prompt_lengths=torch.tensor([length for length, _ in pieces]),
        prompt_start=prompt_start,
    )
