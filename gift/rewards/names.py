"""The reward functions that params.yaml may name, besides a user's own 'rewards/<file>.py:<function>'."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gift.rewards.answers import exact_match, gsm8k_answer, multiple_choice, normalized_match, regex_match
from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format, arithmetic_near, arithmetic_steps
from gift.rewards.form import cosine_length, length, ngram_diversity, overlong, repetition, tag_format, text_format
from gift.rewards.judge import judge
from gift.rewards.math_answer import math_answer
from gift.rewards.programs.code_tests import code_tests
from gift.rewards.reward_model import reward_model
from gift.sandbox.run import check_sandbox

RewardFunction = Callable[..., list[Any]]
"""TRL's signature: f(prompts, completions, completion_ids, **columns, **settings) -> list, an item a row.

An item is a finite number, None (abstain: it does not apply), or an exception (this row's own failure). In ours the
settings are the keyword-only arguments; a call with no rows checks them and loads what the function needs.
"""

REWARDS: dict[str, RewardFunction] = {
    function.__name__: function
    for function in (
        *(arithmetic_answer, arithmetic_format, arithmetic_near, arithmetic_steps),
        *(code_tests, cosine_length, exact_match),
        *(gsm8k_answer, judge, length, math_answer, multiple_choice, ngram_diversity, normalized_match, overlong),
        *(regex_match, repetition, reward_model, tag_format, text_format),
    )
}


@dataclass(frozen=True)
class Defaults:
    """How a function is called where params.yaml does not say.

    `alone` is for functions that hold a model or wait for a server: one process of its own, no memory limit, a long
    time to start.
    """

    batch: int | Literal["group"] = 1  # completions a call
    timeout_seconds: float | None = None  # of a call; None is score.timeout_seconds
    alone: bool = False
    needs: Callable[[], str | None] = lambda: None  # what keeps the machine from it, before any row


DEFAULTS: dict[str, Defaults] = {
    "reward_model": Defaults(batch=16, timeout_seconds=600.0, alone=True),
    "judge": Defaults(batch=64, timeout_seconds=3600.0, alone=True),  # its requests have a limit of their own
    "code_tests": Defaults(timeout_seconds=60.0, needs=check_sandbox),  # the sandbox has a limit of its own, below this
}
