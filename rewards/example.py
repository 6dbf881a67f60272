"""An example of a reward of your own: `function: rewards/example.py:brevity` in params.yaml."""

from typing import Any


def brevity(
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[list[int]],
    max_tokens: int = 32,
    **columns: Any,
) -> list[float | None]:
    """1 for a completion of at most `max_tokens` tokens, falling to 0 at twice as many; None (abstain) without text.

    `max_tokens` comes from `settings` in params.yaml, `columns` are those of the prompts table (answer, ...). Where the
    prompt is a chat, a completion is [{"role": "assistant", "content": "..."}], as in TRL. Raise where you cannot
    judge: the row is then marked as failed, never as 0. Use nothing but the arguments: no clock, no random numbers.
    """
    return [
        max(0.0, min(1.0, 2 - len(ids) / max_tokens)) if completion else None
        for completion, ids in zip(completions, completion_ids, strict=True)
    ]
