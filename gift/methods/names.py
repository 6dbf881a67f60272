"""The methods by name, axis by axis: what `update.select`, `update.shape` and `update.match` may say."""

from typing import Any

from gift.methods.groups import Kind, Match, Select, Shape
from gift.methods.match import cispo, clipped, dpo, f_grpo, flowrl, gift, gvpo, sapo
from gift.methods.select import at_stake, distinct, off_policy, overlong, pods
from gift.methods.shape import (
    baselines,
    copo,
    equal_right,
    gdpo,
    group_factors,
    pairs,
    pass_at_k,
    rlrr,
    token_weighted,
    whitened,
    zscore,
)

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
    "pairs": pairs.METHOD,
}
MATCH: dict[str, Match[Any]] = {
    "gift": gift.METHOD,
    "gvpo": gvpo.METHOD,
    "clipped": clipped.METHOD,
    "cispo": cispo.METHOD,
    "dpo": dpo.METHOD,
    "f_grpo": f_grpo.METHOD,
    "flowrl": flowrl.METHOD,
    "sapo": sapo.METHOD,
}
MADE: dict[Kind, str] = {  # in words
    "completions": "a target for each completion",
    "tokens": "a target for each token",
    "pairs": "pairs",
}
