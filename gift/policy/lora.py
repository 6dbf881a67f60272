"""A LoRA round: what it may start from, and the weights of a new adapter."""

import json
import math
from typing import TYPE_CHECKING, Any

from gift.policy.adapter import adapter_weights, merge_remedy, read_adapter_config
from gift.policy.files import PolicyFiles
from gift.policy.lineage import Lineage
from gift.policy.settings import Lora
from gift.project.errors import UserError
from gift.project.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor


def check_parent(files: PolicyFiles, lineage: Lineage, lora: Lora | None) -> None:
    """Whether a round with this `update.lora` can go on from a policy: from the base, or from an adapter of its kind.

    The modules of the adapter are compared later, when the model is there (`open_policy`).
    """
    if files.adapter is None:
        if lora is not None and lineage.parent is not None:
            raise UserError(
                f"params.yaml: update.lora: the round starts from {files.model}, a whole model that was trained, and "
                f"an adapter stands on the base policy; set it to null, or begin a project with base.model: "
                f"{files.model}"
            )
        return
    config = read_adapter_config(files.adapter)
    own = {name: config[name] for name in ("r", "lora_alpha")}
    if lora is None:
        raise UserError(
            f"params.yaml: update.lora: null: the round starts from {files.adapter}, an adapter with "
            f"{json.dumps(own)}; set it back, or {merge_remedy(files.adapter)}"
        )
    for name, value in own.items():
        if (wanted := lora.model_dump()[name]) != value:
            raise UserError(
                f"params.yaml: update.lora.{name}: {wanted}: the round starts from {files.adapter}, an adapter with "
                f"{value}; set it back, or {merge_remedy(files.adapter)}"
            )


def new_weights(model: Any, seed: int) -> dict[str, "Tensor"]:
    """Of a new adapter, by their names in PEFT's file. Its B are 0, so that it leaves the log-probs as they are, to the
    bit. Its A are PEFT's (uniform, up to 1 / sqrt(in)), drawn from the seed and their names: the same on every rank."""
    import torch

    weights = {}
    for name, parameter in adapter_weights(model).items():
        weights[name] = torch.zeros(parameter.shape)
        if name.endswith(".lora_A.weight"):
            generator = torch.Generator().manual_seed(seed_of("lora", seed, name))
            torch.nn.init.kaiming_uniform_(weights[name], a=math.sqrt(5), generator=generator)
    return weights
