"""Any loss, on groups and log-probs that a test made."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gift.methods.groups import Groups, Loss, Outputs, Targets
from gift.methods.names import MATCH
from gift.methods.objective import Correction, Kl, Objective
from tests.groups import make_groups


def objective_of(name: str, fields: dict[str, Any]) -> Objective:
    kl = Kl(**fields["kl"]) if "kl" in fields else None
    return Objective(MATCH[name], kl, Correction(**fields["correction"]) if "correction" in fields else None)


def settings_for(name: str, fields: dict[str, Any]) -> Any:
    own = {key: value for key, value in fields.items() if key not in ("kl", "correction")}
    return MATCH[name].settings.model_validate(own)


def run(name: str, fields: dict[str, Any], groups: Groups, targets: Targets, outputs: Outputs) -> Loss:
    """The loss under `fields`: settings of the method, and `kl` and `correction` as beside it in params.yaml."""
    return objective_of(name, fields).loss(groups, targets, outputs, settings_for(name, fields))


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def paired(rewards: Tensor, num_pairs: int = 1, **fields: Any) -> Groups:
    groups = make_groups(rewards, **fields)
    return replace(groups, step=replace(groups.step, num_pairs=num_pairs))
