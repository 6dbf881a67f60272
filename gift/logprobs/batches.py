"""Batches of whole completions filled to a budget of tokens: plain arithmetic, the same on every rank."""

from collections.abc import Sequence

from gift.logprobs.settings import Layout
from gift.project.errors import UserError

Lengths = tuple[int, int]  # of a row: tokens of its prompt, and of its completion
Groups = list[list[int]]  # rows that share a prompt, group by group


def num_tokens(groups: Sequence[Sequence[int]], lengths: Sequence[Lengths], layout: Layout) -> int:
    """Tokens that one forward over these groups of rows computes, padding included."""
    bodies = [lengths[row][1] - 1 for group in groups for row in group]  # the last token is only predicted
    if layout == "shared":
        return sum(bodies) + sum(lengths[group[0]][0] for group in groups)
    whole = [sum(lengths[row]) - 1 for group in groups for row in group]
    return sum(whole) if layout == "packed" else len(whole) * max(whole)


def fill(groups: Sequence[Sequence[int]], lengths: Sequence[Lengths], budget: int, layout: Layout) -> list[Groups]:
    """Batches of whole groups with at most `budget` tokens each, largest group first; every group occurs once.

    Padded batches hold groups of similar length; packed ones take the first batch that has room. A group that does not
    fit alone is refused; `split` cuts it.
    """
    size = {index: num_tokens([group], lengths, layout) for index, group in enumerate(groups)}
    longest = {index: max(sum(lengths[row]) for row in group) for index, group in enumerate(groups)}
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


def split(group: Sequence[int], lengths: Sequence[Lengths], budget: int, layout: Layout) -> Groups:
    """One group cut into parts of at most `budget` tokens, longest rows first; a part may still be a row too long."""
    parts: Groups = []
    for row in sorted(group, key=lambda i: (-sum(lengths[i]), i)):
        if parts and num_tokens([[*parts[-1], row]], lengths, layout) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def row_batches(
    groups: Sequence[Sequence[int]], lengths: Sequence[Lengths], budget: int, layout: Layout
) -> list[list[int]]:
    """Batches of rows where whole groups need not stay together: for log-probs without gradient."""
    parts = [part for group in groups for part in split(group, lengths, budget, layout)]
    return [[row for part in batch for row in part] for batch in fill(parts, lengths, budget, layout)]
