"""The reward functions that params.yaml may name, besides a user's own 'rewards/<file>.py:<function>'."""

from collections.abc import Callable
from typing import Any

from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format
from gift.rewards.gsm8k import gsm8k_answer
from gift.rewards.judge import judge
from gift.rewards.reward_model import reward_model
from gift.rewards.text import text_format

RewardFunction = Callable[..., list[Any]]
"""TRL's signature: f(prompts, completions, completion_ids, **columns, **settings) -> list of float | None."""

REWARDS: dict[str, RewardFunction] = {
    "arithmetic_answer": arithmetic_answer,
    "arithmetic_format": arithmetic_format,
    "gsm8k_answer": gsm8k_answer,
    "judge": judge,
    "reward_model": reward_model,
    "text_format": text_format,
}
