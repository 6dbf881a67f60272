"""The reward functions that params.yaml may name, besides a user's own 'rewards/<file>.py:<function>'."""

from collections.abc import Callable
from typing import Any

from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format
from gift.rewards.code import code_tests
from gift.rewards.gsm8k import gsm8k_answer
from gift.rewards.text import text_format
from gift.sandbox import check_sandbox

RewardFunction = Callable[..., list[Any]]
"""TRL's signature: f(prompts, completions, completion_ids, **columns, **settings) -> list of float | None."""

REWARDS: dict[str, RewardFunction] = {
    "arithmetic_answer": arithmetic_answer,
    "arithmetic_format": arithmetic_format,
    "code_tests": code_tests,
    "gsm8k_answer": gsm8k_answer,
    "text_format": text_format,
}

CHECKS: dict[str, Callable[[str], None]] = {"code_tests": check_sandbox}
"""What a function needs of the machine, checked once before any row: check(where) raises a UserError."""
