"""The methods of benchmarks/closed_form.py: files of presets/methods with their changes, and where each one ends."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.tabular import Rewards
from gift.compare.presets import read_preset
from gift.project.sections import check
from gift.training.settings import Update

PRESETS = Path(__file__).parents[1] / "presets" / "methods"
BASELINE = "grpo-kl"
Limit = Literal["optimum", "other", "greedy"]
LIMITS: dict[Limit, str] = {
    "optimum": "its optimum is the aligned one at the given beta",
    "other": "its optimum is another",
    "greedy": "nothing holds it: greedy",
}


@dataclass(frozen=True)
class Method:
    """A preset with changes (keys of `update`); limit: the kind of its optimum, which `why` says in words."""

    preset: str
    limit: Limit
    why: str
    changes: dict[str, Any] = field(default_factory=dict)

    def update(self, lr: float, epochs: int, groups: int) -> Update:
        """The section `update` of a round of so many groups, each of its steps on all of them."""
        path = PRESETS / f"{self.preset}.yaml"
        round_ = {"groups_per_step": groups, "epochs": epochs, "lr": lr, "dtype": "float32"}
        return check(Update, {**read_preset(path)["update"], **self.changes, **round_}, f"{path}: changed: update", ".")

    @property
    def settings(self) -> str:
        """The preset, and its changes as YAML in one line."""
        changes = json.dumps(self.changes).replace('"', "")[1:-1]
        return f"{self.preset}; {changes}" if changes else self.preset


def methods_of(beta: float, group_size: int, rewards: Rewards) -> dict[str, Method]:
    """The methods by name, each with the coefficient beta where its formula has one.

    Every loss that needs neither given answers nor several rewards, and of one loss those whose optimum is another.

    Less its own mean, a reward of a group of n is (n - 1)/n of that less its expectation on average: where the KL is a
    term of the loss, its coefficient is (n - 1)/n of beta, so that their ratio is beta.
    """
    share = (group_size - 1) / group_size
    exact = {"estimator": "k3", "ratio": "token"}  # the gradient is that of the KL itself
    centred = {"kl": {"coef": share * beta, **exact}}
    forward = {"kl": {"coef": share * beta, "estimator": "k3"}}
    in_reward = {"kl_in_reward": beta}
    unit = "none" if rewards == "binary" else "sigmoid"  # UNA takes rewards in [0, 1]
    zeroless = {"shape": {"raw": {"map": unit}}, "match": {"una": {"loss": "mse", "beta": beta}}}
    return {
        "gvpo-reference": Method("gvpo", "optimum", "π*", {"match": {"gvpo": {"anchor": "reference", "beta": beta}}}),
        "pair_regression": Method("pair_regression", "optimum", "π*", {"match": {"pair_regression": {"beta": beta}}}),
        "flowrl-raw": Method(
            "flowrl", "optimum", "π*", {"shape": {"raw": {}}, "match": {"flowrl": {"beta": 1 / beta}}}
        ),
        "rloo": Method("rloo-paper", "optimum", "π*", in_reward),
        "rloo-clipped": Method("rloo-trl", "optimum", "π*", in_reward),
        "grpo-kl_in_reward": Method("grpo", "optimum", "π*", in_reward),
        "reinforce_pp": Method("reinforce_pp", "optimum", "π*", {"shape": {"whitened": {"kl_to_go": beta}}}),
        "reinforce_pp_baseline": Method("reinforce_pp_baseline", "optimum", "π*", in_reward),
        "dr_grpo-kl": Method("dr_grpo", "optimum", "π*", centred),
        BASELINE: Method(
            "grpo", "other", "b(x), about beta x the spread of the group's rewards", {"kl": {"coef": beta, **exact}}
        ),
        "dr_grpo-k3": Method("dr_grpo", "other", "beta π_ref / (λ(x) - r): the KL is turned round", forward),
        "flowrl-zscore": Method(
            "flowrl",
            "other",
            "b(x), about beta x the spread of the group's rewards",
            {"match": {"flowrl": {"beta": 1 / beta}}},
        ),
        "una": Method("una-mse", "other", "none: log Z(x) is taken for 0", zeroless),
        "dpo": Method("dpo", "other", "the order alone: greedy, ever slower", {"match": {"dpo": {"beta": beta}}}),
        "ipo": Method(
            "ipo",
            "other",
            "the order alone: best and worst 1/(2 beta) apart",
            {"match": {"dpo": {"loss": "ipo", "beta": beta}}},
        ),
        "f_grpo": Method(
            "f_grpo", "other", "the sign and size of A: not a tilt", {"match": {"f_grpo": {"beta": beta}}}
        ),
        "gift-paper": Method("gift-paper", "other", "π*_b(x) at any b(x): the scale is free"),
        "gift-reference": Method(
            "gift",
            "other",
            "π*_b(x), b(x) to 0 ever slower, by the floor",
            {"match": {"gift": {"anchor": "reference"}}},
        ),
        "gift": Method("gift", "greedy", "greedy"),
        "gift-released": Method("gift-released", "greedy", "greedy"),
        "gvpo-old": Method("gvpo", "greedy", "greedy", {"match": {"gvpo": {"anchor": "old", "beta": beta}}}),
        "grpo": Method("grpo", "greedy", "greedy"),
        "cispo": Method("cispo", "greedy", "greedy"),
        "sapo": Method("sapo", "greedy", "greedy"),
        "gmpo": Method("gmpo", "greedy", "greedy"),
        "vespo": Method("vespo", "greedy", "greedy"),
        "dppo-tv": Method("dppo-tv", "greedy", "greedy"),
        "amir": Method("amir", "greedy", "greedy", {"match": {"amir": {"adaptive": False}}}),
    }
