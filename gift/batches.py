"""Batches of whole completions of similar length, filled to a budget of tokens."""

from collections.abc import Sequence

from gift.errors import UserError


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into batches with at most `budget` tokens after padding (rows x longest row), longest first.

    Every index occurs exactly once. A row longer than the budget is refused: it can never be trained.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > budget:
            raise UserError(
                f"launch.yaml: tokens_per_batch: {budget} is less than one sequence of {lengths[index]} tokens; "
                "raise it"
            )
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            batches.append(batch)
            batch = []
        batch.append(index)
    if batch:
        batches.append(batch)
    return batches
