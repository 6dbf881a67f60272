"""A LoRA round: what it may start from, the adapter it trains, and the two files it leaves."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gift.policy.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PolicyFiles,
    adapter_weights,
    fill,
    inject,
    merge_remedy,
    peft_name,
    read_adapter_config,
    read_weights,
)
from gift.policy.folder import Lineage, load_model
from gift.policy.settings import Lora
from gift.project.errors import UserError
from gift.project.seeds import seed_of
from gift.project.work import write_json


def check_parent(files: PolicyFiles, lineage: Lineage, lora: Lora | None) -> None:
    """Whether a round with this `update.lora` can go on from a policy: from the base, or from an adapter of its kind.

    The modules of the adapter are compared later, when the model is there (`load_trainable`).
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


def load_trainable(files: PolicyFiles, lora: Lora, dtype: str, seed: int) -> Any:
    """The base policy in `dtype`, frozen, and on it the adapter to train, in float32: the parent's, or a new one.

    A new one leaves the log-probs as they are, to the bit: its B are 0. Its A are PEFT's (uniform, up to 1 / sqrt(in)),
    drawn from the seed and their names, so that they are the same on every rank and machine.
    """
    from peft import LoraConfig

    model = load_model(files.model, dtype)
    if lora.target_modules != "all-linear":
        _check_targets(model, lora.target_modules)
    base = files.model.as_posix()  # as dvc.yaml has it: PEFT opens the folder from the project's root
    inject(model, LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base, **lora.model_dump()))
    for parameter in adapter_weights(model).values():
        parameter.data = parameter.data.float()
    fill(model, read_weights(model, files.adapter) if files.adapter else _new_weights(model, seed))
    return model


def save_adapter(folder: Path, model: Any, weights: Mapping[str, Tensor], dtype: str) -> None:
    """PEFT's two files: the config of the model's adapter, and `weights`, named as in the model, in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {peft_name(name): tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    # A set has another order in every process.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(folder / CONFIG_FILE, plain)


def _check_targets(model: Any, targets: list[str]) -> None:
    """PEFT is silent about a name that fits nothing, and would wrap the head, whose plain weight the log-probs need."""
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head}
    for target in targets:
        found = {name for name in modules if name == target or name.endswith(f".{target}")}
        if not found or found - linear:
            why = "is not (only) linear layers below the head" if found else "fits no module of the policy"
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise UserError(f"params.yaml: update.lora.target_modules: '{target}' {why}; choose from {known}")


def _new_weights(model: Any, seed: int) -> dict[str, Tensor]:
    weights = {}
    for name, parameter in adapter_weights(model).items():
        weights[name] = torch.zeros(parameter.shape)
        if name.endswith(".lora_A.weight"):
            generator = torch.Generator().manual_seed(seed_of("lora", seed, name))
            nn.init.kaiming_uniform_(weights[name], a=math.sqrt(5), generator=generator)
    return weights
