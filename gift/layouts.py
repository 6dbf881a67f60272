"""How completions lie in one forward: padded rows, packed rows, or packed groups that share their prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gift.params import Layout

# Sequences of a packed batch are padded to each other inside attention only, in blocks: with at most this much padding
# (a share of the tokens, and some slots that cost less than another call), and this many entries of a mask.
BLOCK_PADDING, BLOCK_PADDING_SLOTS = 0.25, 1024
BLOCK_MASK_ENTRIES = 2**22


@dataclass(frozen=True)
class Block:
    """Neighbouring sequences of a packed batch that one attention call serves: S prompts with R completions in all.

    Slots are [S * P + R * C] places: prompts padded to P, then completions padded to C. token_of_slot: int64 [slots],
    index into the block's tokens (any where a slot is padding). slot_of_token: int64 [tokens], the slot of each.
    prompt_of_row: int64 [R]. prompt_lengths: int64 [S].
    """

    num_prompts: int
    prompt_width: int
    num_rows: int
    row_width: int
    token_of_slot: Tensor
    slot_of_token: Tensor
    prompt_of_row: Tensor
    prompt_lengths: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """The input of one forward, and where its N completion tokens are predicted.

    input_ids: int64 [B, T]; packed layouts have B = 1. positions: int64 [N], index into the flattened [B * T] of the
    token *before* each completion token, completion after completion. targets: int64 [N], the completion tokens.
    position_ids: int64 [1, T] and blocks where packed. The last token of a completion predicts nothing and is left out.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    position_ids: Tensor | None = None
    blocks: tuple[Block, ...] = ()

    def to(self, device: torch.device) -> "TokenBatch":
        blocks = tuple(
            replace(
                block,
                token_of_slot=block.token_of_slot.to(device),
                slot_of_token=block.slot_of_token.to(device),
                prompt_of_row=block.prompt_of_row.to(device),
                prompt_lengths=block.prompt_lengths.to(device),
            )
            for block in self.blocks
        )
        position_ids = None if self.position_ids is None else self.position_ids.to(device)
        return TokenBatch(
            self.input_ids.to(device), self.positions.to(device), self.targets.to(device), position_ids, blocks
        )


def token_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], layout: Layout = "padded"
) -> TokenBatch:
    """Lay rows out for one forward. Under `shared`, neighbouring rows with equal prompts are computed with one copy."""
    if layout == "padded":
        return _padded(prompts, completions)
    return _packed(prompts, completions, layout == "shared")


def _padded(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
    """Pad on the right: under causal attention no real token sees the padding, so no attention mask is needed."""
    rows = [[*prompt, *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    positions = []
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        input_ids[index, : len(row)] = torch.tensor(row)
        positions.append(torch.arange(len(prompt) - 1, len(row)) + index * width)
    return TokenBatch(input_ids, torch.cat(positions), _targets(completions))


def _packed(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], share: bool) -> TokenBatch:
    """One row of tokens: each prompt once, then the completions that follow it.

    Without sharing a sequence is all "completion" after an empty prompt, so that attention knows one case only.
    """
    pieces: list[tuple[Sequence[int], list[Sequence[int]]]] = []
    tokens: list[int] = []
    position_ids: list[int] = []
    positions: list[int] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if not share:
            body = [*prompt, *completion[:-1]]
            positions += range(len(tokens) + len(prompt) - 1, len(tokens) + len(body))
            pieces.append(((), [body]))
            position_ids += range(len(body))
            tokens += body
            continue
        if not pieces or pieces[-1][0] != prompt:
            pieces.append((prompt, []))
            position_ids += range(len(prompt))
            tokens += prompt
            end_of_prompt = len(tokens) - 1
        body = list(completion[:-1])
        pieces[-1][1].append(body)
        positions += [end_of_prompt, *range(len(tokens), len(tokens) + len(body))]
        position_ids += range(len(prompt), len(prompt) + len(body))
        tokens += body
    return TokenBatch(
        input_ids=torch.tensor([tokens]),
        positions=torch.tensor(positions),
        targets=_targets(completions),
        position_ids=torch.tensor([position_ids]),
        blocks=_blocks([(len(prompt), [len(body) for body in bodies]) for prompt, bodies in pieces]),
    )


def _targets(completions: Sequence[Sequence[int]]) -> Tensor:
    return torch.cat([torch.tensor(completion, dtype=torch.int64) for completion in completions])


def _blocks(pieces: list[tuple[int, list[int]]]) -> tuple[Block, ...]:
    """Cut the batch into blocks; a piece is a prompt's length and the lengths of the completions behind it."""
    blocks, first = [], 0
    for last in range(1, len(pieces) + 1):
        if last == len(pieces) or not _fit(pieces[first : last + 1]):
            blocks.append(_block(pieces[first:last]))
            first = last
    return tuple(blocks)


def _sizes(pieces: list[tuple[int, list[int]]]) -> tuple[int, int, int]:
    """P, R and C of the block that some pieces would make."""
    rows = [length for _, lengths in pieces for length in lengths]
    return max(length for length, _ in pieces), len(rows), max(rows)


def _fit(pieces: list[tuple[int, list[int]]]) -> bool:
    prompt_width, num_rows, row_width = _sizes(pieces)
    slots = len(pieces) * prompt_width + num_rows * row_width
    tokens = sum(length + sum(lengths) for length, lengths in pieces)
    mask = num_rows * row_width * (prompt_width + row_width)
    return slots <= (1 + BLOCK_PADDING) * tokens + BLOCK_PADDING_SLOTS and mask <= BLOCK_MASK_ENTRIES


def _block(pieces: list[tuple[int, list[int]]]) -> Block:
    prompt_width, num_rows, row_width = _sizes(pieces)
    first_row = len(pieces) * prompt_width
    slots: list[int] = []  # of the block's tokens, in their order: a prompt, its completions, the next prompt, ...
    row = 0
    for index, (length, lengths) in enumerate(pieces):
        slots += range(index * prompt_width, index * prompt_width + length)
        for body in lengths:
            slots += range(first_row + row * row_width, first_row + row * row_width + body)
            row += 1
    slot_of_token = torch.tensor(slots, dtype=torch.int64)
    token_of_slot = torch.zeros(first_row + num_rows * row_width, dtype=torch.int64)
    token_of_slot[slot_of_token] = torch.arange(len(slots))
    return Block(
        num_prompts=len(pieces),
        prompt_width=prompt_width,
        num_rows=num_rows,
        row_width=row_width,
        token_of_slot=token_of_slot,
        slot_of_token=slot_of_token,
        prompt_of_row=torch.repeat_interleave(
            torch.arange(len(pieces)), torch.tensor([len(lengths) for _, lengths in pieces])
        ),
        prompt_lengths=torch.tensor([length for length, _ in pieces]),
    )
