"""The reward functions that params.yaml may name, besides a user's own 'rewards/<file>.py:<function>'."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format
from gift.rewards.gsm8k import gsm8k_answer
from gift.rewards.text import text_format

RewardFunction = Callable[..., list[Any]]
"""TRL's signature: f(prompts, completions, completion_ids, **columns, **settings) -> list, an item a row.

An item is a finite number, None (abstain: it does not apply), or an exception (this row's own failure).
"""

REWARDS: dict[str, RewardFunction] = {
    "arithmetic_answer": arithmetic_answer,
    "arithmetic_format": arithmetic_format,
    "gsm8k_answer": gsm8k_answer,
    "text_format": text_format,
}


@dataclass(frozen=True)
class Defaults:
    """How a function is called where params.yaml does not say: `batch` completions a call, within `timeout_seconds`.

    None is score.timeout_seconds. `alone` is for functions that hold a model or wait for a server: one process of its
    own, no memory limit, a long time to start.
    """

    batch: int | Literal["group"] = 1
    timeout_seconds: float | None = None
    alone: bool = False


DEFAULTS: dict[str, Defaults] = {
    "reward_model": Defaults(batch=16, timeout_seconds=600.0, alone=True),
    "judge": Defaults(batch=64, timeout_seconds=600.0, alone=True),
}
