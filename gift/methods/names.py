"""The methods by name, axis by axis: what `update.select`, `shape` and `match` may say, and a method's keys."""

from pathlib import Path
from typing import Any

from gift.methods.groups import Kind, Match, Select, Shape
from gift.methods.match.policy_gradient import cispo, clipped, dppo, dro, gmpo, grao, maestro, reinforce, sapo, vespo
from gift.methods.match.preference import amir, dpo, f_grpo
from gift.methods.match.regression import flowrl, gift, gvpo, pair_regression, una
from gift.methods.select import at_stake, distinct, off_policy, overlong, pods
from gift.methods.shape import (
    baselines,
    copo,
    equal_right,
    gdpo,
    group_factors,
    pairs,
    pass_at_k,
    raw,
    rlrr,
    token_weighted,
    whitened,
    with_given,
    zscore,
)

PRESETS = Path("presets/methods")
METHOD_KEYS: dict[str, tuple[str, ...]] = {
    "generate": ("sample",),
    "update": ("select", "shape", "match", "kl", "kl_in_reward", "correction", "zero_targets", "final_answer"),
}
"""The keys that make a method, by section of params.yaml: those that a preset does not name go to their defaults."""
SELECT: dict[str, Select[Any]] = {
    "overlong": overlong.METHOD,
    "pods": pods.METHOD,
    "at_stake": at_stake.METHOD,
    "distinct": distinct.METHOD,
    "off_policy": off_policy.METHOD,
}
SHAPE: dict[str, Shape[Any]] = {
    "zscore": zscore.METHOD,
    "gdpo": gdpo.METHOD,
    "centred": baselines.CENTRED,
    "leave_one_out": baselines.LEAVE_ONE_OUT,
    "length_baseline": baselines.LENGTH_BASELINE,
    "corpo": baselines.CORPO,
    "rlrr": rlrr.METHOD,
    "disco": group_factors.DISCO,
    "focal": group_factors.FOCAL,
    "copo": copo.METHOD,
    "equal_right": equal_right.METHOD,
    "pass_at_k": pass_at_k.METHOD,
    "whitened": whitened.METHOD,
    "token_weighted": token_weighted.METHOD,
    "raw": raw.METHOD,
    "pairs": pairs.METHOD,
    "all_pairs": pairs.ALL,
    "given_pairs": pairs.GIVEN,
    "with_given": with_given.METHOD,
}
MATCH: dict[str, Match[Any]] = {
    "gift": gift.METHOD,
    "gvpo": gvpo.METHOD,
    "una": una.METHOD,
    "flowrl": flowrl.METHOD,
    "pair_regression": pair_regression.METHOD,
    "dpo": dpo.METHOD,
    "amir": amir.METHOD,
    "f_grpo": f_grpo.METHOD,
    "f_hal": f_grpo.HAL,
    "clipped": clipped.METHOD,
    "reinforce": reinforce.METHOD,
    "cispo": cispo.METHOD,
    "sapo": sapo.METHOD,
    "gmpo": gmpo.METHOD,
    "vespo": vespo.METHOD,
    "dppo": dppo.METHOD,
    "dro": dro.METHOD,
    "grao": grao.METHOD,
    "maestro": maestro.METHOD,
}
MADE: dict[Kind, str] = {  # in words
    "completions": "a target for each completion",
    "tokens": "a target for each token",
    "pairs": "pairs",
}
