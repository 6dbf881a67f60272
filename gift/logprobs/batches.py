"""Batches of whole completions filled to a budget of tokens: plain arithmetic, the same on every rank."""

from collections.abc import Sequence

from gift.logprobs.settings import Layout
from gift.project.errors import UserError
from gift.project.ragged import Ints

Groups = list[list[int]]  # rows that share a prompt, group by group


def num_tokens(groups: Sequence[Sequence[int]], lengths: Ints, layout: Layout) -> int:
    """Tokens that one forward over these groups of rows computes, padding included.

    lengths: int64 [rows, 2], of each row's prompt and of its completion.
    """
    prompts, bodies = lengths[[row for group in groups for row in group]].T
    if layout == "shared":
        prompts = lengths[[group[0] for group in groups], 0]
    if layout == "padded":
        return int(len(bodies) * ((prompts + bodies).max() - 1))
    return int(prompts.sum() + bodies.sum() - len(bodies))  # the last token of a completion is only predicted


def fill(groups: Sequence[Sequence[int]], lengths: Ints, budget: int, layout: Layout) -> list[Groups]:
    """Batches of whole groups with at most `budget` tokens each, largest group first; every group occurs once.

    Padded batches hold groups of similar length; packed ones take the first batch that has room. A group that does not
    fit alone is refused; `split` cuts it.
    """
    size = {index: num_tokens([group], lengths, layout) for index, group in enumerate(groups)}
    longest = {index: int(lengths[list(group)].sum(1).max()) for index, group in enumerate(groups)}
    order = sorted(size, key=lambda i: (-(longest[i] if layout == "padded" else size[i]), i))
    batches: list[Groups] = []
    room: list[int] = []  # of packed batches
    for index in order:
        group = list(groups[index])
        if size[index] > budget:
            raise UserError(
                f"launch.yaml: tokens_per_batch: {budget} is less than one sequence of {size[index]} tokens; raise it"
            )
        if layout == "padded":
            if batches and num_tokens([*batches[-1], group], lengths, layout) <= budget:
                batches[-1].append(group)
            else:
                batches.append([group])
            continue
        place = next((i for i, free in enumerate(room) if free >= size[index]), len(room))
        if place == len(room):
            batches.append([])
            room.append(budget)
        batches[place].append(group)
        room[place] -= size[index]
    return batches


def split(group: Sequence[int], lengths: Ints, budget: int, layout: Layout) -> Groups:
    """One group cut into parts of at most `budget` tokens, longest rows first; a part may still be a row too long."""
    parts: Groups = []
    for row in sorted(group, key=lambda i: (-lengths[i].sum(), i)):
        if parts and num_tokens([[*parts[-1], row]], lengths, layout) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def row_batches(groups: Sequence[Sequence[int]], lengths: Ints, budget: int, layout: Layout) -> list[list[int]]:
    """Batches of rows where whole groups need not stay together: for log-probs without gradient."""
    parts = [part for group in groups for part in split(group, lengths, budget, layout)]
    return [[row for part in batch for row in part] for batch in fill(parts, lengths, budget, layout)]
