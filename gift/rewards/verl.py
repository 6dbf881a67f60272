"""verl's signature of a reward as TRL's: one answer a call, with its ground truth."""

from collections.abc import Callable, Sequence
from typing import Any

from gift.rewards.text import Completions, completion_text

VERL_ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")


def from_verl(compute_score: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A reward with TRL's signature around verl's, which returns a number or a dict with "score" (NaiveRewardManager).

    Columns: `data_source`; the ground truth in `reward_model` (a struct with `ground_truth`) or in `ground_truth`;
    `extra_info`, or {}. An exception is the row's own.
    """

    def reward(
        prompts: Any, completions: Completions, completion_ids: Any, data_source: Sequence[str], **columns: Any
    ) -> list[Any]:
        none = [None] * len(completions)
        extra = [each or {} for each in columns.get("extra_info", none)]
        models, others = columns.get("reward_model", none), columns.get("ground_truth", none)
        truths = [
            model["ground_truth"] if isinstance(model, dict) and "ground_truth" in model else other
            for model, other in zip(models, others, strict=True)
        ]
        rows = zip(data_source, map(completion_text, completions), truths, extra, strict=True)
        return [_score(compute_score, **dict(zip(VERL_ARGUMENTS, row, strict=True))) for row in rows]

    return reward


def _score(compute_score: Callable[..., Any], ground_truth: Any, **arguments: Any) -> Any:
    if ground_truth is None:
        return ValueError("the ground truth is null")
    try:
        score = compute_score(ground_truth=ground_truth, **arguments)
    except (MemoryError, TimeoutError):
        raise
    except Exception as error:
        text = str(error)
        return RuntimeError(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return score["score"] if isinstance(score, dict) and "score" in score else score
