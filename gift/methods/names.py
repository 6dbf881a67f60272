"""The methods by name, axis by axis: what `update.select`, `update.shape` and `update.match` may say."""

from typing import Any

from gift.methods.groups import Match, Select, Shape
from gift.methods.match.policy_gradient import cispo, clipped, sapo
from gift.methods.match.preference import dpo, f_grpo
from gift.methods.match.regression import flowrl, gift, gvpo
from gift.methods.select import overlong, pods
from gift.methods.shape import centred, gdpo, leave_one_out, pairs, zscore

SELECT: dict[str, Select[Any]] = {"overlong": overlong.METHOD, "pods": pods.METHOD}
SHAPE: dict[str, Shape[Any]] = {
    "zscore": zscore.METHOD,
    "gdpo": gdpo.METHOD,
    "centred": centred.METHOD,
    "leave_one_out": leave_one_out.METHOD,
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
